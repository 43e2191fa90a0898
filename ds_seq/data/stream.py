"""The batches of all epochs as one resumable stream, prepared in the background."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import NotRequired, TypedDict

from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.mix_state import MixState, mix_position, mix_state
from ds_seq.data.mixing import Mix, Position, Stage

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
        mix: state of a mix of corpora; missing without one.
    """

    epoch: int
    offset: int
    num_batches: int
    mix: NotRequired[MixState]


class Legs:
    """The legs of a training, along which the stream and its background thread walk.

    A leg is the rest of an epoch from a position, or that part of it which belongs to a stage that
    ends after a number of updates.

    Args:
        sampler: makes batches of an epoch.
        mix: the pairs of each epoch; None: those of the sampler.
    """

    def __init__(self, sampler: TokenBatchSampler, mix: Mix | None = None) -> None:
        self._sampler = sampler
        self.mix = mix

    @property
    def start(self) -> Position:
        """The position before the first update."""
        return Position() if self.mix is None else Position(plan=self.mix.start)

    def sampler(self, position: Position) -> TokenBatchSampler:
        """Return the sampler of the epoch of a position."""
        return self._sampler if self.mix is None else self.mix.sampler(position.plan)

    def _updates_left(self, position: Position) -> int | None:
        """Return the number of updates until the end of a stage that counts them."""
        wanted = None if self.mix is None else self.mix.stage(position.plan).until.updates
        return None if wanted is None else max(1, wanted - position.stage_updates)

    def num_updates(self, position: Position) -> int:
        """Return the number of updates of the leg that begins at a position."""
        updates = self.sampler(position).num_updates(position.done, position.epoch)
        left = self._updates_left(position)
        return updates if left is None else min(updates, left)

    def batches(self, position: Position) -> Iterator[NDArray[np.int64]]:
        """Yield the batches of this rank of the leg that begins at a position."""
        sampler = self.sampler(position)
        size = self.num_updates(position) * sampler.accumulate
        return islice(sampler.batches(position.epoch, position.done), size)

    def along(self, position: Position, updates: int) -> Position:
        """Return the position after some updates of the leg that begins at a position."""
        if updates == self.num_updates(position):
            return self.after(position)
        done = position.done + updates * self._sampler.group
        return position._replace(done=done, stage_updates=position.stage_updates + updates)

    def after(self, position: Position) -> Position:
        """Return the position after the leg that begins at a position."""
        epoch, mix = position.epoch, self.mix
        if mix is None:
            return Position(epoch + 1)
        updates, sampler = self.num_updates(position), self.sampler(position)
        is_whole = updates == sampler.num_updates(position.done, epoch)
        if updates == self._updates_left(position):
            done = 0 if is_whole else position.done + updates * sampler.group
            plan = mix.next_stage(position.plan, epoch + is_whole, done)
            return Position(epoch + 1, plan=plan)
        plan = mix.after(position.plan, epoch)
        is_same_stage = plan[-1].stage == position.plan[-1].stage
        kept = position.stage_updates + updates if is_same_stage else 0
        return Position(epoch + 1, plan=plan, stage_updates=kept)

    def next_stage(self, position: Position) -> Position:
        """Return the position if the stage ends at one."""
        assert self.mix is not None
        plan = self.mix.next_stage(position.plan, position.epoch, position.done)
        return Position(plan[-1].epoch, plan=plan)


class BatchStream:
    """Iterator over the batches of this rank, epoch after epoch.

    A background thread keeps `num_prefetch` batches ready. Prefetched batches do not count in
    `state_dict`, and an exception in the thread is raised by the call for the next batch.

    Args:
        collate: makes a batch, normally by `Task.collate` of a dataset; called in the background.
        sampler: assigns examples to batches.
        num_prefetch: number of batches prepared ahead; 0 makes each batch on demand, without a
            thread.
        pin: whether to put batches into page-locked memory (needs CUDA).
        max_epochs: number of epochs after which the stream ends; None means never.
        mix: the examples of each epoch; None: those of the sampler.
        collate_in: returns what makes the batches from a position on, up to the end of its epoch or
            stage, if they depend on it; None: `collate`.
    """

    def __init__(
        self,
        collate: Collate,
        sampler: TokenBatchSampler,
        *,
        num_prefetch: int,
        pin: bool = False,
        max_epochs: int | None = None,
        mix: Mix | None = None,
        collate_in: Callable[[Position], Collate] | None = None,
    ) -> None:
        self._sampler = sampler
        self._legs = Legs(sampler, mix)
        self._source = _Source(collate_in or (lambda _: collate), self._legs, pin, max_epochs)
        self._num_prefetch = num_prefetch
        self._batches: Iterator[Batch] | _Prefetcher | None = None
        self._go_to(self._legs.start)

    def _go_to(self, position: Position) -> None:
        self.close()
        self._from = position  # start of the present leg, or where this stream began in it
        self._taken = 0  # number of batches returned since then

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 1; increases with the last batch of an epoch."""
        return self._from.epoch

    @property
    def updates_per_epoch(self) -> int:
        """Number of updates in the epoch of the next batch."""
        return self._legs.sampler(self._from).num_updates(epoch=self.epoch)

    @property
    def empty_share(self) -> float:
        """Share of empty batches, which fill the updates, in the epoch of the next batch."""
        sampler = self._legs.sampler(self._from)
        places = sampler.num_updates(epoch=self.epoch) * sampler.group
        return 1.0 - sampler.num_batches(self.epoch) / places

    @property
    def stage(self) -> Stage | None:
        """The stage of the next batch; None without a mix."""
        return None if self._legs.mix is None else self._legs.mix.stage(self._from.plan)

    @property
    def num_stages(self) -> int:
        """Number of stages; 0 without a mix."""
        return 0 if self._legs.mix is None else len(self._legs.mix.stages)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            batches = self._source.batches(self._from)
            self._batches = (
                _Prefetcher(batches, self._num_prefetch) if self._num_prefetch else batches
            )
        batch = next(self._batches)
        self._taken += 1
        if self._taken == self._legs.num_updates(self._from) * self._sampler.accumulate:
            self._from, self._taken = self._legs.after(self._from), 0
        return batch

    def _position(self) -> Position:
        """Return the position after the last finished update."""
        return self._legs.along(self._from, self._taken // self._sampler.accumulate)

    def next_stage(self) -> None:
        """End the present stage after the last finished update."""
        self._go_to(self._legs.next_stage(self._position()))

    def state_dict(self) -> StreamState:
        """Return the position after the last finished update."""
        position = self._position()
        state: StreamState = {
            "epoch": position.epoch,
            "offset": position.done,
            "num_batches": self._legs.sampler(position).num_batches(position.epoch),
        }
        if self._legs.mix is not None:
            state["mix"] = mix_state(self._legs.mix, position)
        return state

    def load_state_dict(self, state: StreamState) -> None:
        """Resume at a position, even if it was saved with another number of ranks or accumulation.

        If the batches themselves have changed (other data, `max_tokens` or limits), resume at about
        the same part of the epoch and log a warning. If the mix has changed, resume with a new
        epoch of it.
        """
        position = Position(state["epoch"])
        if self._legs.mix is not None:
            position, changed = mix_position(self._legs.mix, state.get("mix"), state["epoch"])
            if changed:
                _log.warning("%s; resuming with a new epoch %d", changed, position.epoch)
                self._go_to(position)
                return
        offset = state["offset"]
        num_batches = self._legs.sampler(position).num_batches(state["epoch"])
        if state["num_batches"] != num_batches:
            offset = offset * num_batches // state["num_batches"]
            _log.warning(
                "an epoch has %d batches now and had %d when the state was saved; resuming at "
                "about the same part of epoch %d",
                num_batches,
                state["num_batches"],
                state["epoch"],
            )
        self._go_to(position._replace(done=offset))

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

    collate_in: Callable[[Position], Collate]
    legs: Legs
    pin: bool
    max_epochs: int | None

    def batches(self, position: Position) -> Iterator[Batch]:
        while self.max_epochs is None or position.epoch <= self.max_epochs:
            collate = self.collate_in(position)
            for indices in self.legs.batches(position):
                batch = collate(indices)
                yield batch.pin() if self.pin else batch
            position = self.legs.after(position)


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
