"""Record the collectives of a process, so that a rank which hangs can name the one it waits in.

Functions of `torch.distributed` are replaced by ones that note kind, size and start. Our own code
and DeepSpeed call them by their names in that module, so every collective of a run is seen. PyTorch
records the collectives of NCCL only. It costs about five microseconds per collective.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ds_seq.activity import mark

_COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
)


@dataclass
class Collective:
    """A collective of this process.

    Attributes:
        kind: name of the function.
        num_bytes: size of its tensors; 0 for objects.
        number: how many there have been, from 1: equal on ranks that wait for each other.
        started: when it was called, by `time.monotonic`.
        ended: when it returned; None: it has not.
    """

    kind: str
    num_bytes: int
    number: int
    started: float
    ended: float | None = None

    def describe(self) -> str:
        """Describe it, for people."""
        now = time.monotonic()
        size = f" of {self.num_bytes:,} bytes" if self.num_bytes else ""
        if self.ended is None:
            since = f"waiting in it for {now - self.started:.1f} s"
        else:
            since = f"returned {now - self.ended:.1f} s ago"
        return f"{self.kind}{size}, number {self.number:,}; {since}"


class FlightRecorder:
    """Records the collectives of this process between `install` and `remove`.

    Attributes:
        last: the newest collective; None before the first.
        error: the exception of the collective that failed last.
    """

    def __init__(self) -> None:
        self.last: Collective | None = None
        self.error: BaseException | None = None
        self._count = 0
        self._pending: dict[int, Collective] = {}  # by thread: a GPU's backward has its own
        self._originals: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """Start recording; does nothing if that has been done."""
        if self._originals:
            return
        for name in _COLLECTIVES:
            original = vars(dist).get(name)
            if original is not None:
                self._originals[name] = original
                setattr(dist, name, self._recorded(name, original))

    def remove(self) -> None:
        """Put the functions back."""
        for name, original in self._originals.items():
            setattr(dist, name, original)
        self._originals.clear()

    @property
    def is_waiting(self) -> bool:
        """Whether a thread is in a collective that has not returned."""
        return bool(self._pending)

    def describe(self) -> str:
        """Describe the last collective, for people."""
        waiting = list(self._pending.values())
        last = waiting[0] if waiting else self.last
        return "none yet" if last is None else last.describe()

    def caused(self, error: BaseException) -> bool:
        """Return whether an exception comes from a collective."""
        cause: BaseException | None = error
        while cause is not None:
            if cause is self.error:
                return True
            cause = cause.__cause__ or cause.__context__
        return False

    def _recorded(self, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._count += 1
            size = _num_bytes(args) or _num_bytes(kwargs.values())
            entry = Collective(kind, size, self._count, time.monotonic())
            thread = threading.get_ident()
            self.last = self._pending[thread] = entry
            try:
                result = original(*args, **kwargs)
                mark()  # the others were there
                return result
            except BaseException as error:
                self.error = error
                raise
            finally:
                entry.ended = time.monotonic()
                self._pending.pop(thread, None)

        return recorded


def _num_bytes(values: Iterable[Any]) -> int:
    """Return the size of the first tensor, or list of tensors, among the arguments."""
    for value in values:
        tensors = value if isinstance(value, list) else [value]
        if tensors and isinstance(tensors[0], torch.Tensor):
            return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    return 0


RECORDER = FlightRecorder()
"""The recorder of this process."""
