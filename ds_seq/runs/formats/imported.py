"""What became of a model of another toolkit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.data.text_batch import TextInputs
from ds_seq.text.tokenizer import Tokenizers


class Entry(NamedTuple):
    """What became of a tensor of theirs.

    Attributes:
        theirs: its name.
        ours: the tensor of ours that has it, or part of it; empty if none does.
        how: `taken`, `renamed`, `joined` or `left`.
        note: why it is left, or how it changed.
    """

    theirs: str
    ours: str
    how: str
    note: str = ""


@dataclass(frozen=True)
class Imported:
    """A model that was made of another toolkit's.

    Attributes:
        model: the model, in float32.
        config: experiment that describes it.
        tokenizers: its tokenizers.
        entries: what became of each tensor of theirs.
        difference: largest difference of a logit from what theirs computes; None if it was not
            compared.
        num_compared: number of logits that were compared.
        updates: number of updates of its training, if that is known.
    """

    model: nn.Module
    config: ExperimentConfig
    tokenizers: Tokenizers
    entries: list[Entry]
    difference: float | None = None
    num_compared: int = 0
    updates: int | None = None


def inputs_of(source: Sequence[int], target: Sequence[int]) -> Seq2SeqInputs:
    """Return the inputs of a model for one pair of ids, the start symbol first in the target."""
    ids = [torch.tensor([each]) for each in (source, target)]
    masks = [torch.ones_like(each, dtype=torch.bool) for each in ids]
    return Seq2SeqInputs(ids[0], masks[0], ids[1], masks[1], len(target), len(source))


def text_inputs_of(tokens: Sequence[int]) -> TextInputs:
    """Return the inputs of a language model for one text, the start symbol first."""
    ids = torch.tensor([tokens])
    mask = torch.ones_like(ids, dtype=torch.bool)
    return TextInputs(ids, mask, mask, len(tokens))
