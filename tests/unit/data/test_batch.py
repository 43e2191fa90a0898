"""What a batch is made of: shifting, the start symbol, masks, and tensors that move."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq.data.batch import Batch, TopTokens, empty_seq2seq_batch, pad_rows, seq2seq_batch
from ds_seq.data.shards import TokenBlock
from ds_seq.text.tokenizer import Symbols

SYMBOLS = Symbols(pad=7, eos=5, unk=6, start=9)
SOURCES = [[20, 21, 5], [22, 5], [23, 24, 25, 5]]
TARGETS = [[30, 5], [31, 32, 33, 5], [5]]


def make_batch() -> Batch:
    source, target = (TokenBlock.of(side) for side in (SOURCES, TARGETS))
    return seq2seq_batch(source, target, SYMBOLS)


def test_the_decoder_starts_with_the_start_symbol_and_lags_by_one() -> None:
    inputs = make_batch().inputs
    assert inputs.source.tolist() == [[20, 21, 5, 7], [22, 5, 7, 7], [23, 24, 25, 5]]
    assert inputs.target.tolist() == [[9, 30, 7, 7], [9, 31, 32, 33], [9, 7, 7, 7]]
    empty = empty_seq2seq_batch(SYMBOLS)
    assert empty.inputs.source.tolist() == [[5]] and empty.inputs.target.tolist() == [[9]]
    assert empty.labels.tolist() == [[7]] and empty.inputs.source_mask.tolist() == [[True]]
    assert not empty.mask.any() and empty.num_tokens == empty.inputs.num_targets == 0


def test_real_is_what_the_mask_says_and_only_that() -> None:
    batch = make_batch()
    assert batch.mask is batch.inputs.target_mask
    assert batch.mask.sum(1).tolist() == [2, 4, 1]
    assert batch.inputs.source_mask.sum(1).tolist() == [3, 2, 4]
    assert batch.num_tokens == batch.inputs.num_targets == 7
    assert batch.num_sentences == 3 and batch.indices.tolist() == [0, 1, 2]
    assert batch.labels[~batch.mask].eq(7).all()
    # a sentence may hold the id that pads
    padded = pad_rows([[7, 7, 5], [7]], 7)
    assert padded.mask.tolist() == [[True, True, True], [True, False, False]]


def test_real_labels_are_in_row_major_order() -> None:
    batch = make_batch()
    assert batch.real_labels.tolist() == [30, 5, 31, 32, 33, 5, 5]
    assert empty_seq2seq_batch(SYMBOLS).real_labels.tolist() == []
    other = replace(batch, mask=batch.mask.roll(1, 0))  # remembers nothing of the first
    assert other.real_labels.tolist() == batch.labels[other.mask].tolist()


@pytest.mark.parametrize("rows", [[], [[4]], [[4, 5, 6], [7]]])
def test_padded_rows_come_back_through_their_mask(rows: list[list[int]]) -> None:
    ids, mask = pad_rows(rows, 1)
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows), default=1))
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == rows


class Masked(NamedTuple):
    """What another kind of model reads."""

    tokens: Tensor
    mask: Tensor
    length: int
    prompt: Tensor | None


def test_inputs_of_any_kind_move_as_a_whole() -> None:
    labels, mask = torch.tensor([[3, 4]]), torch.tensor([[True, False]])
    top = TopTokens(torch.zeros(1, 2).long(), torch.zeros(1, 2))
    inputs = Masked(labels, mask, 2, None)
    batch = Batch(torch.arange(1), inputs, labels, mask, 1, 1, top).to("meta")
    assert isinstance(batch.inputs, Masked) and batch.inputs[2:] == (2, None)
    assert batch.inputs.mask is batch.mask and batch.inputs.tokens is batch.labels
    assert batch.teacher is not None
    tensors = (batch.indices, batch.labels, batch.mask, *batch.teacher)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
