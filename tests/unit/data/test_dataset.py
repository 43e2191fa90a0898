"""Padded batches: contents, limits, the empty batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

PAD, EOS = 1, 2
SYMBOLS = Symbols(pad=PAD, eos=EOS, unk=3, start=EOS)


@pytest.mark.parametrize("multiple", [1, 8])
def test_rows_hold_sentences_and_padding_on_the_right(reader: ShardReader, multiple: int) -> None:
    dataset = ParallelDataset(reader)
    wanted = np.array([250, 3, 81, 80, 3])
    batch = dataset.collate(wanted, SYMBOLS, multiple)
    assert batch.indices.tolist() == wanted.tolist()
    assert batch.num_sentences == 5
    assert batch.num_tokens == int(batch.mask.sum())
    for row, index in enumerate(wanted):
        source, target = (side.tolist() for side in reader[index])
        for matrix, ids in (
            (batch.inputs.source, source),
            (batch.labels, target),
            (batch.inputs.target, [EOS, *target[:-1]]),
        ):
            assert matrix.dtype == torch.int64
            assert matrix[row].tolist() == ids + [PAD] * (matrix.shape[1] - len(ids))
            assert matrix.shape[1] % multiple == 0
    width = max(len(reader[i][0]) for i in wanted)
    assert width <= batch.inputs.source.shape[1] < width + multiple


def test_pairs_beyond_the_limits_are_left_out_and_counted(reader: ShardReader) -> None:
    source, target = int(np.median(reader.lengths[:, 0])), int(reader.lengths[:, 1].max()) - 1
    dataset = ParallelDataset(reader, source, target)
    fits = (reader.lengths[:, 0] <= source) & (reader.lengths[:, 1] <= target)
    assert 0 < len(dataset) < len(reader)
    assert dataset.num_left_out == len(reader) - len(dataset)
    assert dataset.rows.tolist() == np.flatnonzero(fits).tolist()
    assert dataset.lengths[:, 0].tolist() == reader.lengths[fits, 0].tolist()
    batch = dataset.collate([len(dataset) - 1], SYMBOLS)
    assert batch.inputs.source[0].tolist() == reader[int(np.flatnonzero(fits)[-1])][0].tolist()
    assert batch.indices.tolist() == [np.flatnonzero(fits)[-1]], "the number is that of the line"


def test_limits_that_leave_nothing_name_the_keys(reader: ShardReader) -> None:
    with pytest.raises(UserError, match="none of 300 sentence pairs.*data.max_source_length=1 "):
        ParallelDataset(reader, 1, 100)


def test_empty_batch_has_a_row_but_no_token(shards: Path) -> None:
    batch = ParallelDataset(ShardReader(shards, "train")).collate([], SYMBOLS)
    assert batch.inputs.source.tolist() == batch.inputs.target.tolist() == [[EOS]]
    assert batch.labels.tolist() == [[PAD]]
    assert (batch.num_tokens, batch.num_sentences, len(batch.indices)) == (0, 0, 0)


def test_batch_moves_as_a_whole(reader: ShardReader) -> None:
    batch = ParallelDataset(reader).collate([1, 2], SYMBOLS).to("meta")
    tensors = (batch.indices, *batch.inputs[:4], batch.labels, batch.mask)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.num_sentences == 2
