"""Time that a process spends in collectives, separately for those of the experts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

_EXCHANGES = ("all_to_all", "all_to_all_single")
_OTHERS = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class CommunicationClock:
    """Seconds since construction or the last read, including waits for other ranks.

    Wraps every collective of `torch.distributed`, which DeepSpeed and the expert layers call.
    """

    def __init__(self) -> None:
        self._seconds = {"exchange": 0.0, "reduce": 0.0}
        self._inside = False
        for kind, names in (("exchange", _EXCHANGES), ("reduce", _OTHERS)):
            for name in names:
                setattr(dist, name, self._timed(kind, vars(dist)[name]))

    def _timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # a collective made of others
                return function(*args, **kwargs)
            self._inside, begin = True, time.perf_counter()
            try:
                work = function(*args, **kwargs)
            finally:
                self._inside = False
                self._seconds[kind] += time.perf_counter() - begin
            return work if work is None else _TimedWork(work, self, kind)

        return timed

    def add(self, kind: str, seconds: float) -> None:
        """Add the time spent waiting for an asynchronous collective."""
        self._seconds[kind] += seconds

    def read(self) -> tuple[float, float]:
        """Return seconds in exchanges between experts and in other collectives, and reset both."""
        exchange, reduce = self._seconds["exchange"], self._seconds["reduce"]
        self._seconds = {"exchange": 0.0, "reduce": 0.0}
        return exchange, reduce


class _TimedWork:
    """An asynchronous collective, of which only the wait is timed."""

    def __init__(self, work: Any, clock: CommunicationClock, kind: str) -> None:
        self._work, self._clock, self._kind = work, clock, kind

    def wait(self, *args: Any) -> Any:
        """See `torch.distributed.Work`."""
        begin = time.perf_counter()
        try:
            return self._work.wait(*args)
        finally:
            self._clock.add(self._kind, time.perf_counter() - begin)

    def is_completed(self) -> bool:
        """See `torch.distributed.Work`."""
        return bool(self._work.is_completed())
