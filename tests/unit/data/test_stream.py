"""The stream: epochs, exact resumption at any layout, the background thread."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.batching import Selected, TokenBatchSampler
from ds_seq.data.shards import ShardReader
from ds_seq.data.stream import BatchStream
from ds_seq.text.tokenizer import Symbols
from ds_seq.training.inputs import empty_batches

SYMBOLS = Symbols(pad=1, eos=2, unk=3, start=2)
MAX_TOKENS = 150


@pytest.fixture
def dataset(reader: ShardReader) -> ParallelDataset:
    return ParallelDataset(reader)


def _stream(
    dataset: ParallelDataset,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    max_epochs: int | None = 2,
    num_prefetch: int = 3,
    max_tokens: int = MAX_TOKENS,
) -> BatchStream:
    sampler = TokenBatchSampler(
        dataset.lengths,
        max_tokens,
        seed=1,
        rank=rank,
        world_size=world,
        accumulate=accumulate,
    )
    return BatchStream(
        partial(dataset.collate, symbols=SYMBOLS),
        sampler,
        num_prefetch=num_prefetch,
        max_epochs=max_epochs,
    )


def _indices(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.mark.parametrize("num_prefetch", [0, 1, 5])
def test_epochs_follow_each_other(dataset: ParallelDataset, num_prefetch: int) -> None:
    with _stream(dataset, num_prefetch=num_prefetch) as stream:
        size = stream.updates_per_epoch
        epochs = []
        batches = []
        for batch in stream:
            batches.append(batch.indices.tolist())
            epochs.append(stream.epoch)
    assert epochs == [1] * (size - 1) + [2] * size + [3]
    for epoch in (batches[:size], batches[size:]):
        assert sorted(sum(epoch, [])) == list(range(len(dataset)))
    assert batches[:size] != batches[size:]


@pytest.mark.parametrize("taken", [0, 1, 7, -1, 0.5, 1.5])
def test_a_resumed_stream_continues_unchanged(dataset: ParallelDataset, taken: float) -> None:
    """Stops after some updates of the first epoch; -1: exactly at its end; 1.5: in the second."""
    accumulate = 2
    with _stream(dataset, accumulate=accumulate) as stream:
        whole = _indices(stream)
        per_epoch = stream.updates_per_epoch
    updates = {-1: per_epoch, 0.5: per_epoch // 2, 1.5: per_epoch * 3 // 2}.get(taken, int(taken))
    with _stream(dataset, accumulate=accumulate) as first:
        for _ in range(updates * accumulate):
            next(first)
        time.sleep(0.05)  # let the thread run ahead; that must not count
        state = first.state_dict()
    with _stream(dataset, accumulate=accumulate) as second:
        next(second)
        second.load_state_dict(state)
        assert second.state_dict() == state
        assert _indices(second) == whole[updates * accumulate :]


def test_an_unfinished_update_is_done_again(dataset: ParallelDataset) -> None:
    with _stream(dataset, accumulate=4) as stream:
        for _ in range(6):
            next(stream)
        assert stream.state_dict()["offset"] == 4


@pytest.mark.parametrize(("world", "accumulate"), [(4, 1), (1, 4), (1, 1), (3, 2)])
def test_resuming_with_another_layout_yields_the_rest_of_the_epoch(
    dataset: ParallelDataset, world: int, accumulate: int
) -> None:
    seen = []
    for rank in range(2):
        with _stream(dataset, rank, 2, 2, max_epochs=1) as stream:
            seen += [i for _ in range(4) for i in next(stream).indices.tolist()]
            state = stream.state_dict()
    rest = []
    for rank in range(world):
        with _stream(dataset, rank, world, accumulate, max_epochs=1) as stream:
            stream.load_state_dict(state)
            rest += sum(_indices(stream), [])
    assert len(seen) > 0
    assert sorted(seen + rest) == list(range(len(dataset)))


def test_resumption_with_the_same_update_size_has_the_same_updates(
    dataset: ParallelDataset,
) -> None:
    """Saved by 2 ranks x 2 batches, resumed by 4 x 1 and 1 x 4, then on into the next epoch."""

    def updates(world: int, accumulate: int) -> list[list[int]]:
        ranks = []
        for rank in range(world):
            with _stream(dataset, rank, world, accumulate) as stream:
                stream.load_state_dict(state)
                ranks.append(_indices(stream))
        size = range(0, len(ranks[0]), accumulate)
        return [sorted(sum((sum(r[i : i + accumulate], []) for r in ranks), [])) for i in size]

    with _stream(dataset, 0, 2, 2) as stream:
        for _ in range(4):
            next(stream)
        state = stream.state_dict()
    reference = updates(2, 2)
    assert updates(4, 1) == reference
    assert updates(1, 4) == reference


def test_other_batches_resume_at_the_same_part_and_report_it(
    dataset: ParallelDataset, caplog: pytest.LogCaptureFixture
) -> None:
    with _stream(dataset) as stream:
        half = stream.updates_per_epoch // 2
        for _ in range(half):
            next(stream)
        state = stream.state_dict()
    with _stream(dataset, max_tokens=2 * MAX_TOKENS) as other, caplog.at_level(logging.WARNING):
        other.load_state_dict(state)
        part = other.state_dict()["offset"] / other.updates_per_epoch
    assert abs(part - 0.5) < 0.1
    assert "about the same part" in caplog.text


class _BrokenDataset(ParallelDataset):
    """Fails at the third batch."""

    calls = 0

    def collate(self, *arguments: object, **more: object) -> Batch:  # type: ignore[override]
        self.calls += 1
        if self.calls == 3:
            raise OSError("disk gone")
        return super().collate(*arguments, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_prefetch", [0, 4])
def test_an_exception_reaches_the_consumer_in_its_turn(
    reader: ShardReader, num_prefetch: int
) -> None:
    with _stream(_BrokenDataset(reader), num_prefetch=num_prefetch) as stream:
        next(stream)
        next(stream)
        with pytest.raises(OSError, match="disk gone"):
            next(stream)


def test_an_ended_or_failed_stream_stays_so(reader: ShardReader) -> None:
    with _stream(_BrokenDataset(reader)) as stream:
        with pytest.raises(OSError, match="disk gone"):
            for _ in stream:
                pass
        with pytest.raises(OSError, match="disk gone"):
            next(stream)
    with _stream(ParallelDataset(reader), max_epochs=1) as stream:
        list(stream)
        with pytest.raises(StopIteration):
            next(stream)


def _workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_closing_ends_the_thread(dataset: ParallelDataset) -> None:
    stream = _stream(dataset, max_epochs=None)
    assert _workers() == [], "a stream that nobody asked for a batch has no thread"
    next(stream)
    assert len(_workers()) == 1
    stream.close()
    assert _workers() == []
    stream.close()


def test_dropping_a_stream_ends_the_thread(dataset: ParallelDataset) -> None:
    stream = _stream(dataset, max_epochs=None)
    next(stream)
    del stream
    gc.collect()
    for _ in range(50):
        if not _workers():
            return
        time.sleep(0.05)
    raise AssertionError("the thread outlived its stream")


def test_prefetch_is_bounded(reader: ShardReader) -> None:
    """Two in the queue and one waiting for room, besides the one that was taken."""
    counting = _BrokenDataset(reader)
    counting.calls = 10
    with _stream(counting, num_prefetch=2) as stream:
        next(stream)
        time.sleep(0.1)
        assert counting.calls - 10 <= 4


def test_epochs_of_different_rows_resume_where_they_were(dataset: ParallelDataset) -> None:
    def stream() -> BatchStream:
        sampler = TokenBatchSampler(
            dataset.lengths,
            MAX_TOKENS,
            seed=1,
            accumulate=1,
            rows=lambda epoch: Selected.whole(np.arange(len(dataset) // epoch)),
        )
        return BatchStream(
            partial(dataset.collate, symbols=SYMBOLS), sampler, num_prefetch=4, max_epochs=3
        )

    with stream() as one:
        batches = [batch.indices.tolist() for batch in one]
    sizes = [stream()._sampler.num_batches(epoch) for epoch in (1, 2, 3)]
    assert len(batches) == sum(sizes) and len(set(sizes)) == 3
    for taken in (1, sizes[0], sizes[0] + 2, sum(sizes[:2]) + 1):
        with stream() as first, stream() as second:
            for _ in range(taken):
                next(first)
            second.load_state_dict(first.state_dict())
            assert _indices(second) == batches[taken:]


@pytest.mark.parametrize(("accumulate", "is_warned"), [(1, False), (1000, True)])
def test_updates_that_are_mostly_empty_are_reported(
    dataset: ParallelDataset, accumulate: int, is_warned: bool
) -> None:
    with _stream(dataset, accumulate=accumulate, num_prefetch=0) as stream:
        assert 0.0 <= stream.empty_share < 1.0
        assert (stream.empty_share > 0.9) is is_warned
        assert bool(empty_batches(stream)) is is_warned
