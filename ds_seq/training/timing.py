"""Where the time of training goes, measured without waiting for the device.

On a CPU, spans are measured with the monotonic clock. On a GPU, events are put into its queue at
both ends of a span, and read when the figures are reduced, which waits for the queue anyway.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

PARTS = ("data", "forward", "backward", "step", "communication")
"""Spans of an update. Communication is what the others wait for, and part of them: the collectives
that the computation waits for, not those that overlap with it."""

_MOST_EVENTS = 20_000
"""Pairs of events between two reductions; later spans are not measured."""
_COLLECTIVES = (
    "allreduce",
    "allgather",
    "_allgather_base",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "_reduce_scatter_base",
)


def _event() -> Any:  # torch has no types for it
    event: Any = torch.cuda.Event
    return event(enable_timing=True)


class Timing:
    """Sums the time of spans of this rank.

    Args:
        device: the device whose work is measured; by default the CPU.

    Attributes:
        is_paused: whether spans are not counted now.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_gpu = device is not None and device.type == "cuda"
        self.is_paused = False
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Count the time of the block for one of `PARTS`; that of data is always the host's."""
        if self.is_paused:
            yield
            return
        if not self._on_gpu or part == "data":
            began = time.monotonic()
            try:
                yield
            finally:
                self._seconds[part] += time.monotonic() - began
            return
        if len(self._events) >= _MOST_EVENTS:
            yield
            return
        begin, end = _event(), _event()
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._events.append((part, begin, end))

    def take(self) -> list[float]:
        """Return the seconds of each of `PARTS` since the last call; does not wait for a device."""
        for part, begin, end in self._events:
            if end.query():
                self._seconds[part] += begin.elapsed_time(end) / 1000.0
        seconds = [self._seconds[part] for part in PARTS]
        self._seconds, self._events = dict.fromkeys(PARTS, 0.0), []
        return seconds

    @contextmanager
    def communication(self) -> Iterator[None]:
        """Count the time for which collectives hold up this process inside the block.

        DeepSpeed's collectives are counted, too, so what torch calls is wrapped: the start of each
        collective, and the wait for its end.
        """
        classes: list[tuple[Any, str]] = [(dist.ProcessGroup, name) for name in _COLLECTIVES]
        classes.append((dist.Work, "wait"))
        originals = [(owner, name, vars(owner)[name]) for owner, name in classes]
        for owner, name, original in originals:
            setattr(owner, name, self._timed(original))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.span("communication"):
                return function(*args, **options)

        return timed
