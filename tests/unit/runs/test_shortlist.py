"""Files of shortlists."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_seq.data.lexicon import Lexicon
from ds_seq.errors import UserError
from ds_seq.runs.shortlist import load_shortlist, save_shortlist
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers

CPU = torch.device("cpu")


def test_a_file_holds_the_translations_and_special_symbols_are_added(
    vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    tokenizers, path = Tokenizers.shared(vocab), tmp_path / "list"
    targets = np.full((len(vocab), 2), -1)
    targets[7], targets[9, 0] = (11, 12), 13
    save_shortlist(Lexicon(targets, np.array([20, 21])), tokenizers, path)
    shortlist = load_shortlist(path, tokenizers, CPU)
    sources = torch.tensor([[7, vocab.symbols.eos], [9, vocab.symbols.eos]])
    allowed = shortlist.allowed(sources, torch.ones_like(sources, dtype=torch.bool))
    assert allowed.shape == (2, len(vocab))
    special = {0, 1, 2, 3, 20, 21}
    for row, expected in zip(allowed, ({11, 12}, {13}), strict=True):
        assert set(row.nonzero().flatten().tolist()) == special | expected


def test_another_vocabulary_is_refused(vocab: SentencePieceTokenizer, tmp_path: Path) -> None:
    path, empty = tmp_path / "list", np.full((len(vocab), 1), -1)
    save_shortlist(Lexicon(empty, np.array([5])), Tokenizers.shared(vocab), path)
    other = copy.copy(vocab)
    other.fingerprint = "0"
    with pytest.raises(UserError, match="list: has another vocabulary than the model; make it"):
        load_shortlist(path, Tokenizers.shared(other), CPU)
