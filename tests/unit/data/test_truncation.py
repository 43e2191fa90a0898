"""Pairs that are cut to the limits instead of being left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ds_seq.config.data import DataConfig
from ds_seq.data.batch import ParallelDataset
from ds_seq.data.corpora import CorporaDataset, Part
from ds_seq.data.shards import ShardReader
from ds_seq.data.truncation import TruncatedSource
from ds_seq.tasks import numbers_of_tags
from tests.unit.data.test_dataset import SYMBOLS


def test_a_cut_side_keeps_its_beginning_and_its_end_symbol(reader: ShardReader) -> None:
    most = int(np.median(reader.lengths[:, 0]))
    source = TruncatedSource(reader, (most, None))
    assert source.lengths[:, 0].tolist() == np.minimum(reader.lengths[:, 0], most).tolist()
    assert source.lengths[:, 1].tolist() == reader.lengths[:, 1].tolist()
    rows = np.array([*np.argsort(reader.lengths[:, 0])[[0, -1]], 7])
    for side, block in enumerate(source.gather(rows)):
        assert block.lengths.tolist() == source.lengths[rows, side].tolist()
        for row, ids in zip(
            rows, np.split(block.tokens, np.cumsum(block.lengths)[:-1]), strict=True
        ):
            whole = reader[int(row)][side].tolist()
            is_cut = side == 0 and len(whole) > most
            assert ids.tolist() == ([*whole[: most - 1], whole[-1]] if is_cut else whole)


def test_no_pair_is_left_out_for_its_source(reader: ShardReader) -> None:
    most, target = int(np.median(reader.lengths[:, 0])), int(reader.lengths[:, 1].max()) - 1
    fits = reader.lengths[:, 1] <= target
    dataset = ParallelDataset(TruncatedSource(reader, (most, None)), most, target)
    assert dataset.rows.tolist() == np.flatnonzero(fits).tolist() and not fits.all()
    longest = int(np.argmax(reader.lengths[fits, 0]))
    batch = dataset.collate([longest], SYMBOLS)
    assert batch.inputs.source.shape[1] == most
    assert batch.labels[0].tolist() == reader[int(dataset.rows[longest])][1].tolist()
    everything = ParallelDataset(TruncatedSource(reader, (most, target)), most, target)
    assert everything.num_left_out == 0


def test_the_ends_of_files_of_one_language(corpus: Path) -> None:
    data = DataConfig(source_lang="en", target_lang="en", dir="x", raw=str(corpus))
    assert data.file_ends == ("source", "target")


def test_tags_have_room_besides_what_is_left_of_a_source(reader: ShardReader) -> None:
    corpora = {"a": {"tsv": "a.tsv", "tag": "<a>"}, "b": {"tsv": "b.tsv"}}
    section = {"source_lang": "en", "target_lang": "en", "dir": "x", "corpora": corpora}
    data = DataConfig(**section, vocab={"user_symbols": ["<a>"]}, long_pairs="truncate_source")
    assert numbers_of_tags(data) == ([0, 1, 0], [0, 0, 0])
    most = int(np.median(reader.lengths[:, 0]))
    parts = [
        Part("a", range(150), ("en", "en"), ((9,), ())),
        Part("b", range(150, 300), ("en",) * 2),
    ]
    dataset = CorporaDataset(TruncatedSource(reader, (most - 1, None)), parts, most, None)
    assert dataset.num_left_out == 0 and dataset.lengths[:, 0].max() == most
    longest = int(np.argmax(dataset.lengths[:150, 0]))
    ids = dataset.collate([longest], SYMBOLS).inputs.source[0].tolist()
    assert len(ids) == most and ids[0] == 9 and ids[-1] == SYMBOLS.eos
