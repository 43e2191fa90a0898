"""A progress bar on a terminal, or an occasional plain line elsewhere (log files, SLURM)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ds_seq.activity import mark

Report = Callable[[int], None]  # called with the number of newly finished items
_PLAIN_SECONDS = 30.0
_LARGE = 100_000


def ignore(amount: int) -> None:
    """A `Report` that shows nothing."""


class Progress:
    """Context manager to call with the number of items finished since the last call.

    Args:
        title: description of the work.
        total: total number of items; None if unknown.
        unit: plural noun for the items.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "pairs") -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = 0
        self._started = self._printed = time.monotonic()
        self._bar = _bar(title, total, unit) if sys.stderr.isatty() else None

    def __call__(self, amount: int) -> None:
        self._done += amount
        mark()
        if self._bar is not None:
            self._bar.update(amount)
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._print()

    def _print(self, is_over: bool = False) -> None:
        self._printed = time.monotonic()
        total = "" if self._total is None else f" of {self._total:,}"
        seconds = self._printed - self._started
        left = ""
        if self._total is not None and 0 < self._done < self._total and not is_over:
            left = f", about {seconds * (self._total - self._done) / self._done:.0f} s left"
        print(
            f"{self._title}: {self._done:,}{total} {self._unit}, {seconds:.0f} s{left}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._print(is_over=True)


def _bar(title: str, total: int | None, unit: str) -> Any:
    """Return a bar without the thread that redraws it: a process with threads cannot be copied."""
    from tqdm import tqdm  # takes a tenth of the start of a command

    class Bar(tqdm):  # type: ignore[type-arg]  # is generic in the stubs only
        monitor_interval = 0

    return Bar(
        total=total,
        desc=title,
        unit=f" {unit}",
        unit_scale=total is None or total >= _LARGE,  # 1.23M, not 1230000
        dynamic_ncols=True,
    )
