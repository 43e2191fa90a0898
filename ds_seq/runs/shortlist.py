"""Files of shortlists, and searches with one.

A file (safetensors) holds `targets` (source vocabulary, L) int32, the likely translations of each
source token, the best first and -1 where there are fewer, and `frequent`, the most frequent tokens
of the target. Its header has the fingerprint of the vocabulary and a checksum.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ds_seq import files
from ds_seq.config.generation import GenerationConfig
from ds_seq.data.lexicon import Lexicon
from ds_seq.errors import UserError
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.shortlist import Shortlist, ShortlistSearch
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.weights.source import TensorFile, check_export, save_tensors

_KEY, _VERSION = "ds_seq.shortlist", "1"
_VOCABULARY = "ds_seq.vocabulary"


def save_shortlist(lexicon: Lexicon, tokenizers: Tokenizers, path: Path) -> None:
    """Write a shortlist.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {
        "targets": torch.from_numpy(lexicon.targets).int(),
        "frequent": torch.from_numpy(lexicon.frequent).int(),
    }
    header = {_KEY: _VERSION, _VOCABULARY: tokenizers.fingerprint}
    with files.replacing(path) as temporary:
        save_tensors(tensors, temporary, header)


def load_shortlist(path: Path, tokenizers: Tokenizers, device: torch.device) -> Shortlist:
    """Read a shortlist for a model with these tokenizers.

    Raises:
        UserError: the file is missing or damaged, is no shortlist, or has another vocabulary.
    """
    remake = "make it with `ds-seq shortlist`"
    file = TensorFile(path)
    header = file.metadata()
    if header.get(_KEY) != _VERSION:
        raise UserError(f"{path}: is no shortlist of this version; {remake}")
    if header.get(_VOCABULARY) != tokenizers.fingerprint:
        raise UserError(f"{path}: has another vocabulary than the model; {remake} for it")
    check_export(path)
    targets = file.read("targets").to(device, torch.int64)
    symbols = tokenizers.symbols
    special = {symbols.eos, symbols.unk, symbols.pad, symbols.start, *symbols.never_generated}
    always = file.read("frequent").to(device, torch.int64)
    always = torch.cat([always, always.new_tensor(sorted(special))]).unique()
    targets = targets.masked_fill(targets < 0, symbols.eos)
    return Shortlist(targets, always, len(tokenizers.target))


def with_shortlist(
    search: BeamSearch, settings: GenerationConfig, tokenizers: Tokenizers, device: torch.device
) -> BeamSearch:
    """Return a search with the shortlist of `settings`, if they have one.

    Args:
        search: the search without it.
        settings: settings of generation.
        tokenizers: tokenizers of the model.
        device: device of the model.

    Raises:
        UserError: see `load_shortlist` and `ShortlistSearch`.
    """
    if settings.shortlist is None:
        return search
    shortlist = load_shortlist(Path(settings.shortlist), tokenizers, device)
    return ShortlistSearch(**search.settings, shortlist=shortlist)
