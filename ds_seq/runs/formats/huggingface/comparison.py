"""Compare an imported or exported model with what transformers computes from the folder.

Shapes: T target length, V vocabulary.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ds_seq.errors import UserError
from ds_seq.modules.rms_norm import RmsNorm
from ds_seq.runs.formats.huggingface.importing import Languages, import_folder
from ds_seq.runs.formats.huggingface.mapping import Orders
from ds_seq.runs.formats.huggingface.peer_routing import misroutes
from ds_seq.runs.formats.imported import inputs_of
from ds_seq.text.huggingface import HuggingFaceTokenizer
from ds_seq.text.tokenizer import MarkedTokenizer, Tokenizers

TOLERANCE = 1e-5
"""Largest difference of a logit in float64, relative to the largest logit."""
_ROUNDED = (
    1e-4  # of models with RMSNorm, which transformers computes in float32 in any case, and of FSMT
)


_MISROUTES = "transformers {} sends the tokens of NLLB-MoE to other experts than its router chooses"
_LONGEST, _SAMPLES = 32, 8  # ids of a line, and lines


class Comparison(NamedTuple):
    """Result of a comparison.

    Attributes:
        difference: largest difference of a logit, relative to the largest logit.
        num_logits: number of logits.
        lines: number of lines whose ids were compared with those of the folder's own tokenizer.
    """

    difference: float
    num_logits: int
    lines: int


def compare(
    folder: Path, model: nn.Module, tokenizers: Tokenizers, lines: Sequence[str]
) -> Comparison:
    """Compare logits in float64, and how both sides of each line are read.

    Args:
        folder: the folder.
        model: our model of it.
        tokenizers: our tokenizers of it.
        lines: text; each line is source and target.

    Raises:
        UserError: they differ, or transformers is not installed.
    """
    peer = _load(folder)
    own, orders = tokenizers.target, _orders(tokenizers)
    # FSMT of transformers makes masks that overflow in float64
    is_single = peer.config.model_type == "fsmt"
    precision = torch.float32 if is_single else torch.float64
    peer, twin = peer.to(precision), copy.deepcopy(model).to(precision).eval()
    largest, scale, count = 0.0, 0.0, 0
    for line in lines:
        source = tokenizers.source.symbols.framed(tokenizers.source.encode(line)[:_LONGEST])
        target = [own.symbols.start, *own.symbols.opening, *own.encode(line)[:_LONGEST]]
        with torch.no_grad(), _masks_in_float64():
            logits = twin(inputs_of(source, target)).logits
            ids = [
                torch.tensor([[order[i] for i in side]])
                for side, order in zip((source, target), orders, strict=True)
            ]
            # with a cache, FSMT of transformers masks nothing
            given = {"input_ids": ids[0], "decoder_input_ids": ids[1], "use_cache": False}
            expected = peer(**given).logits[0][:, list(orders.target)]
        largest = max(largest, float((logits - expected).abs().max()))
        scale, count = max(scale, float(expected.abs().max())), count + logits.numel()
    has_rms = any(isinstance(part, RmsNorm) for part in model.modules())
    if not largest <= (_ROUNDED if has_rms or is_single else TOLERANCE) * scale:
        raise UserError(
            f"{folder}: the model computes something else than transformers: logits differ by up "
            f"to {largest:.1e}, the largest is {scale:.1e}; nothing is written"
        )
    return Comparison(largest / scale, count, _compare_ids(folder, tokenizers, orders, lines))


def _orders(tokenizers: Tokenizers) -> Orders:
    sides = []
    for tokenizer in tokenizers:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        sides.append(tokenizer.permutation())
    return Orders(*sides)


@contextmanager
def _masks_in_float64() -> Iterator[None]:
    """Let transformers before 5.0 make masks of models in float64, which it does in the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class WrongPeerError(UserError):
    """The installed transformers computes something else than the model it opens."""


def _load(folder: Path) -> Any:
    try:
        from transformers import AutoModelForSeq2SeqLM
        from transformers import __version__ as version
    except ImportError:
        raise UserError(
            "the result is compared with transformers, which is not installed: `pip install "
            "transformers`, or say --no-compare"
        ) from None
    model = AutoModelForSeq2SeqLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
    )
    model = model.double().eval()
    if misroutes(model):
        raise WrongPeerError(
            f"{_MISROUTES.format(version)}; compare with 4.57 (`pip install 'transformers<5'`), or "
            "say --no-compare"
        )
    return model


def _compare_ids(folder: Path, tokenizers: Tokenizers, orders: Orders, lines: Sequence[str]) -> int:
    """Compare the ids of source lines with those of the folder's tokenizer."""
    from transformers import AutoTokenizer

    assert isinstance(tokenizers.source, HuggingFaceTokenizer)
    prefix = tokenizers.source.source_prefix
    reader = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for line in lines:
        ours = [orders.source[i] for i in tokenizers.source.encode(line)]
        theirs = reader(prefix + line, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise UserError(
                f"{folder}: {line!r} is read as {ours}, but by transformers as {theirs}; nothing "
                "is written"
            )
    return len(lines)


def check_written(
    folder: Path,
    model: nn.Module,
    tokenizers: Tokenizers,
    languages: Languages,
    dtype: torch.dtype,
    lines: Sequence[str],
) -> str:
    """Read a written folder back, and compare it with the model; with transformers, if installed.

    Args:
        folder: the folder.
        model: our model, in float32.
        tokenizers: our tokenizers.
        languages: languages of source and target.
        dtype: number format of the folder.
        lines: text to compare on.

    Returns:
        What was compared, a sentence.

    Raises:
        UserError: texts are read in another way, or logits differ.
    """
    read = import_folder(folder, "written", languages)
    for own, written in zip(tokenizers, read.tokenizers, strict=True):
        for line in lines:
            ids, again = own.encode(line), written.encode(line)
            if ids != again:
                raise UserError(
                    f"{folder}: {line!r} is read as {again} instead of {ids}; nothing is written"
                )
    twins = [copy.deepcopy(each).to(dtype).double().eval() for each in (model, read.model)]
    symbols = tokenizers.target.symbols
    for line in lines:
        ids, target = (side.encode(line)[:_LONGEST] for side in tokenizers)
        inputs = inputs_of(tokenizers.source.symbols.framed(ids), [symbols.start, *target])
        with torch.no_grad():
            ours, theirs = (twin(inputs).logits for twin in twins)
        if not torch.allclose(ours, theirs, atol=_ROUNDED * float(ours.abs().max())):
            raise UserError(f"{folder}: logits differ from those of the run; nothing is written")
    checked = (
        f"Read back by ds_seq when it was written: ids and logits of {len(lines)} lines are those "
        "of the run."
    )
    if find_spec("transformers") is None or dtype != torch.float32:
        return checked
    try:
        found = compare(folder, read.model, read.tokenizers, lines)
    except WrongPeerError as error:
        reason = str(error).partition(";")[0]
        print(f"ds-seq: warning: {reason}; use the folder with 4.57", file=sys.stderr)
        return checked
    return f"{checked} transformers computes logits that differ by {found.difference:.0e} at most."


def sample_lines(tokenizers: Tokenizers) -> list[str]:
    """Return lines of text made of pieces of the vocabulary."""
    draw, tokenizer = torch.Generator().manual_seed(1), tokenizers.source
    symbols = tokenizer.symbols
    special = symbols.never_generated | {symbols.eos, symbols.unk, *tokenizer.tag_ids}
    if isinstance(tokenizer, MarkedTokenizer):
        special |= tokenizer.special_ids
    plain = torch.tensor([number for number in range(len(tokenizer)) if number not in special])
    rows = plain[torch.randint(len(plain), (_SAMPLES, _LONGEST // 2), generator=draw)]
    return [tokenizer.normalize(tokenizer.decode(row)) for row in rows.tolist()]
