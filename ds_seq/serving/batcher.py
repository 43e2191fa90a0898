"""Dynamic batching: what waits at the same time and fits together is computed together.

A batch is bounded in three ways: by its number of items, by its padded size, and by the time that
its oldest item has waited for company. Who has waited longest is always in the next batch, so
nobody starves; its company are the waiting items of the same kind whose sizes are nearest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


class Kind(Protocol):
    """What to compute, and how. Kinds that are equal share batches, so they have a hash."""

    @property
    def most_items(self) -> int:
        """Most items of a batch."""

    @property
    def most_size(self) -> int:
        """Largest padded size of a batch: its number of items times the largest size of one."""

    def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        """Compute a batch; called in a thread of the batcher.

        Returns:
            The answer to each item.
        """


@dataclass(eq=False)
class _Job:
    kind: Kind
    item: Any
    size: int
    arrived: float
    answer: Future[Any] = field(default_factory=Future)


class Batcher:
    """Computes what is submitted, in batches, in threads of its own.

    Args:
        workers: number of threads, which divide PyTorch's threads among them.
        longest_wait: seconds that an item waits for others to share its batch, if no thread is
            busy; 0 takes what is there.
        watch: called with the items and the padded size of each batch.
    """

    def __init__(
        self, workers: int, longest_wait: float, watch: Callable[[int, int], object]
    ) -> None:
        self._longest_wait, self._watch = longest_wait, watch
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._num_threads = max(torch.get_num_threads() // workers, 1)
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Number of items that no thread has taken yet, without those that were canceled."""
        return sum(not job.answer.cancelled() for job in list(self._waiting))

    def submit(self, kind: Kind, item: Any, size: int) -> Future[Any]:
        """Ask for the answer to an item.

        Args:
            kind: what to compute.
            item: what `kind` is called with, among others.
            size: size of the item, such as its number of tokens; at least 1.

        Returns:
            The answer to come. One that is canceled before a thread takes its item is not computed.
        """
        job = _Job(kind, item, size, time.monotonic())
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Compute what waits, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        torch.set_num_threads(self._num_threads)
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            self._compute(batch)
            del batch  # its tensors and answers must not stay until the next one

    def _compute(self, batch: list[_Job]) -> None:
        jobs = [job for job in batch if job.answer.set_running_or_notify_cancel()]
        if not jobs:
            return
        self._watch(len(jobs), len(jobs) * max(job.size for job in jobs))
        try:
            answers = jobs[0].kind([job.item for job in jobs])
        except Exception as error:  # everybody in the batch has to know
            for job in jobs:
                job.answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)

    def _next_batch(self) -> list[_Job] | None:
        """Wait for work and take a batch; None when the batcher is closed and nothing is left."""
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if not job.answer.cancelled()]
                if not self._waiting:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                batch, is_full = choose(self._waiting)
                left = batch[0].arrived + self._longest_wait - time.monotonic()
                if is_full or left <= 0 or self._closed:
                    taken = set(map(id, batch))
                    self._waiting = [job for job in self._waiting if id(job) not in taken]
                    if self._waiting:
                        self._changed.notify()  # there is work for another thread
                    return batch
                self._changed.wait(left)


def choose(waiting: Sequence[_Job]) -> tuple[list[_Job], bool]:
    """Choose the jobs of the next batch.

    Args:
        waiting: at least one job, the oldest first.

    Returns:
        The oldest job and those that share its batch; and whether no other would fit.
    """
    oldest = waiting[0]
    kind = oldest.kind
    same = [job for job in waiting[1:] if job.kind == kind]
    same.sort(key=lambda job: abs(job.size - oldest.size))  # stable: the older first
    batch, largest = [oldest], oldest.size
    for job in same:
        width = max(largest, job.size)
        if len(batch) == kind.most_items or width * (len(batch) + 1) > kind.most_size:
            return batch, True
        batch.append(job)
        largest = width
    is_full = len(batch) == kind.most_items or largest * (len(batch) + 1) > kind.most_size
    return batch, is_full
