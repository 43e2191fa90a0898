"""The batches of all epochs as one resumable stream, prepared in the background."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler

_log = logging.getLogger(__name__)
_STOP_POLL_SECONDS = 0.2

Collate = Callable[[NDArray[np.integer]], Batch]
"""(B,) numbers of examples -> their batch; for no examples, the empty batch."""


class StreamState(TypedDict):
    """A position in the stream, independent of the rank and the number of ranks.

    Attributes:
        epoch: epoch of the next batch, from 1.
        offset: number of batches of that epoch in finished updates, over all ranks.
        num_batches: number of batches per epoch over all ranks, to detect changed batches.
    """

    epoch: int
    offset: int
    num_batches: int


class BatchStream:
    """Iterator over the batches of this rank, epoch after epoch.

    A background thread keeps `num_prefetch` batches ready. Prefetched batches do not count in
    `state_dict`, and an exception in the thread is raised by the call for the next batch.

    Args:
        collate: makes a batch, normally `Task.collate` of a dataset; called in the background.
        sampler: assigns examples to batches.
        num_prefetch: number of batches prepared ahead; 0 makes each batch on demand, without a
            thread.
        pin: whether to put batches into page-locked memory (needs CUDA).
        max_epochs: number of epochs after which the stream ends; None means never.
    """

    def __init__(
        self,
        collate: Collate,
        sampler: TokenBatchSampler,
        *,
        num_prefetch: int,
        pin: bool = False,
        max_epochs: int | None = None,
    ) -> None:
        self._sampler = sampler
        self._source = _Source(collate, sampler, pin, max_epochs)
        self._num_prefetch = num_prefetch
        self._batches: Iterator[Batch] | _Prefetcher | None = None
        self._go_to(epoch=1, done=0)

    def _go_to(self, epoch: int, done: int) -> None:
        self.close()
        self._epoch = epoch
        self._done = done  # number of batches over all ranks before the start of this stream
        self._taken = 0  # number of batches returned since then

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 1; increases with the last batch of an epoch."""
        return self._epoch

    @property
    def updates_per_epoch(self) -> int:
        """Number of updates in the epoch of the next batch."""
        return self._sampler.num_updates(epoch=self._epoch)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            batches = self._source.batches(self._epoch, self._done)
            self._batches = (
                _Prefetcher(batches, self._num_prefetch) if self._num_prefetch else batches
            )
        batch = next(self._batches)
        self._taken += 1
        updates = self._sampler.num_updates(self._done, self._epoch)
        if self._taken == updates * self._sampler.accumulate:
            self._epoch, self._done, self._taken = self._epoch + 1, 0, 0
        return batch

    def state_dict(self) -> StreamState:
        """Return the position after the last finished update."""
        updates = self._taken // self._sampler.accumulate
        return {
            "epoch": self._epoch,
            "offset": self._done + updates * self._sampler.group,
            "num_batches": self._sampler.num_batches(self._epoch),
        }

    def load_state_dict(self, state: StreamState) -> None:
        """Resume at a position, even if it was saved with another number of ranks or accumulation.

        If the batches themselves have changed (other data, `max_tokens` or limits), resume at about
        the same part of the epoch and log a warning.
        """
        offset = state["offset"]
        num_batches = self._sampler.num_batches(state["epoch"])
        if state["num_batches"] != num_batches:
            offset = offset * num_batches // state["num_batches"]
            _log.warning(
                "an epoch has %d batches now and had %d when the state was saved; resuming at "
                "about the same part of epoch %d",
                num_batches,
                state["num_batches"],
                state["epoch"],
            )
        self._go_to(state["epoch"], offset)

    def close(self) -> None:
        """Stop the background thread; the next batch starts a new one."""
        if isinstance(self._batches, _Prefetcher):
            self._batches.close()
        self._batches = None

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Source(NamedTuple):
    """Everything needed to make batches; contains no reference to the stream."""

    collate: Collate
    sampler: TokenBatchSampler
    pin: bool
    max_epochs: int | None

    def batches(self, first_epoch: int, done: int) -> Iterator[Batch]:
        for epoch in count(first_epoch):
            if self.max_epochs is not None and epoch > self.max_epochs:
                return
            for indices in self.sampler.epoch(epoch, done):
                batch = self.collate(indices)
                yield batch.pin() if self.pin else batch
            done = 0


class _End(NamedTuple):
    """Last item of a queue of batches, with the exception that caused it, if any."""

    error: BaseException | None


class _Prefetcher:
    """Run an iterator in a thread that is at most `size` items ahead."""

    def __init__(self, items: Iterator[Batch], size: int) -> None:
        self._queue: queue.Queue[Batch | _End] = queue.Queue(size)
        self._stop = threading.Event()
        self._end: _End | None = None
        # The thread must not reference self, so that deleting the stream also ends the thread.
        self._thread = threading.Thread(
            target=_fill, args=(items, self._queue, self._stop), name="batches", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._stop.set)

    def __next__(self) -> Batch:
        if self._end is None:
            item = self._queue.get()
            if not isinstance(item, _End):
                return item
            self._end = item
        raise self._end.error or StopIteration

    def close(self) -> None:
        self._stop.set()
        with suppress(queue.Empty):  # make room, so that a waiting thread wakes immediately
            while True:
                self._queue.get_nowait()
        self._thread.join()


def _fill(items: Iterator[Batch], target: queue.Queue[Batch | _End], stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(item, target, stop):
                return
        _put(_End(None), target, stop)
    except BaseException as error:  # pass any exception to the consumer
        _put(_End(error), target, stop)


def _put(item: Batch | _End, target: queue.Queue[Batch | _End], stop: threading.Event) -> bool:
    """Put an item into the queue when there is room; return False if stopped meanwhile."""
    while not stop.is_set():
        try:
            target.put(item, timeout=_STOP_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
