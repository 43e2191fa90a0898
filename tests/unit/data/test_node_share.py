"""Ranks of a machine share the order of an epoch: the same arrays, made once, nothing left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ds_seq import files
from ds_seq.data import node_share
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.mixing import Corpus, Mix, Stage
from ds_seq.data.node_share import NodeShare

LENGTHS = np.random.default_rng(2).integers(2, 30, (200, 2))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(node_share.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def shares(folder: Path) -> Iterator[tuple[NodeShare, NodeShare]]:
    """Of the rank that makes arrays, and of another one; both in this process."""
    maker, other = NodeShare("t", makes=True), NodeShare("t", makes=False)
    yield maker, other
    other.close()
    maker.close()
    assert not list(folder.iterdir())


def _refuse() -> list[np.ndarray]:
    raise AssertionError("this rank must not make them")


def test_arrays_are_made_once(shares: tuple[NodeShare, NodeShare]) -> None:
    made = [np.arange(5, dtype=np.uint32), np.zeros(0, np.int64), np.asarray([1.5])]
    for share, make in zip(shares, (lambda: made, _refuse), strict=True):
        for _ in range(2):
            found = share.get("x", make)
            assert [array.dtype for array in found] == [array.dtype for array in made]
            assert [array.tolist() for array in found] == [array.tolist() for array in made]
            assert not any(array.flags.writeable for array in found)


def test_old_arrays_stay_valid_where_they_are_used(
    shares: tuple[NodeShare, NodeShare], folder: Path
) -> None:
    maker, other = shares
    maker.get("0", lambda: [np.arange(3)])
    kept = other.get("0", _refuse)[0]
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(1, 9):
        maker.get(str(number), lambda: [np.arange(3)])
        other.get(str(number), _refuse)
    assert kept.tolist() == [0, 1, 2]
    assert len(os.listdir("/proc/self/fd")) < descriptors + 2 * 5  # maps have some, too
    assert len(list(folder.rglob("*.json"))) < 6


def test_without_a_maker_a_rank_makes_them_itself(folder: Path) -> None:
    share = NodeShare("gone", makes=False)
    place = folder / f"ds_seq-{os.getuid()}-gone"
    place.mkdir()
    files.write_json(place / "maker.json", {"process": 2**22 + 1})  # more than Linux allows
    assert share.get("x", lambda: [np.arange(2)])[0].tolist() == [0, 1]
    note = {"process": 2**22 + 1, "descriptor": 3, "size": 64, "pieces": []}
    files.write_json(place / "y.json", note)
    assert share.get("y", lambda: [np.arange(2)])[0].tolist() == [0, 1]


@pytest.mark.parametrize("is_mixed", [False, True])
def test_samplers_share_an_order(shares: tuple[NodeShare, NodeShare], is_mixed: bool) -> None:
    corpora = [Corpus("a", 0, 120, 1.0, 1, ""), Corpus("b", 120, 80, 1.0, 1, "")]

    def batches(rank: int, share: NodeShare | None) -> list[list[int]]:
        sampler = TokenBatchSampler(LENGTHS, 90, None, 3, rank, 2, accumulate=1)
        if share is not None:
            sampler = sampler.shared(share)
        if is_mixed:
            mix = Mix(corpora, [Stage("1", {"a": 1, "b": 1}, 150)], 3, sampler)
            sampler = mix.sampler(mix.start)
        found = [batch.tolist() for epoch in (1, 2) for batch in sampler.epoch(epoch)]
        assert sampler.num_batches(2) > 10
        return found

    for rank, share in enumerate(shares):
        assert batches(rank, share) == batches(rank, None)
