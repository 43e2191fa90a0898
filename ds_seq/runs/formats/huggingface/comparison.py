"""Compare an imported or exported model with what transformers computes from the folder.

Shapes: T target length, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.errors import UserError
from ds_seq.modules.rms_norm import RmsNorm
from ds_seq.text.huggingface import HuggingFaceTokenizer
from ds_seq.text.tokenizer import Tokenizers

TOLERANCE = 1e-5
"""Largest difference of a logit in float64, relative to the largest logit."""
_ROUNDED = 1e-4  # of models with RMSNorm, which transformers computes in float32 all the same


_LONGEST = 32  # ids of a line


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
    own = tokenizers.target
    assert isinstance(own, HuggingFaceTokenizer)
    order = own.permutation()
    twin = copy.deepcopy(model).double().eval()
    largest, scale, count = 0.0, 0.0, 0
    for line in lines:
        source = tokenizers.source.symbols.framed(tokenizers.source.encode(line)[:_LONGEST])
        target = [own.symbols.start, *own.symbols.opening, *own.encode(line)[:_LONGEST]]
        with torch.no_grad():
            logits = twin(inputs_of(source, target)).logits
            ids = [torch.tensor([[order[i] for i in side]]) for side in (source, target)]
            expected = peer(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0][:, order]
        largest = max(largest, float((logits - expected).abs().max()))
        scale, count = max(scale, float(expected.abs().max())), count + logits.numel()
    has_rms = any(isinstance(part, RmsNorm) for part in model.modules())
    if not largest <= (_ROUNDED if has_rms else TOLERANCE) * scale:
        raise UserError(
            f"{folder}: the model computes something else than transformers: logits differ by up "
            f"to {largest:.1e}, the largest is {scale:.1e}; nothing is written"
        )
    return Comparison(largest / scale, count, _compare_ids(folder, tokenizers, order, lines))


def _load(folder: Path) -> Any:
    try:
        from transformers import AutoModelForSeq2SeqLM
    except ImportError:
        raise UserError(
            "the result is compared with transformers, which is not installed: `pip install "
            "transformers`, or say --no-compare"
        ) from None
    model = AutoModelForSeq2SeqLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
    )
    return model.double().eval()


def _compare_ids(
    folder: Path, tokenizers: Tokenizers, order: Sequence[int], lines: Sequence[str]
) -> int:
    """Compare the ids of source lines with those of the folder's tokenizer."""
    from transformers import AutoTokenizer

    reader = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for line in lines:
        ours = [order[i] for i in tokenizers.source.encode(line)]
        theirs = reader(line, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise UserError(
                f"{folder}: {line!r} is read as {ours}, but by transformers as {theirs}; nothing "
                "is written"
            )
    return len(lines)


def inputs_of(source: Sequence[int], target: Sequence[int]) -> Seq2SeqInputs:
    """Return the inputs of a model for one pair of ids, the start symbol first in the target."""
    ids = [torch.tensor([each]) for each in (source, target)]
    masks = [torch.ones_like(each, dtype=torch.bool) for each in ids]
    return Seq2SeqInputs(ids[0], masks[0], ids[1], masks[1], len(target), len(source))
