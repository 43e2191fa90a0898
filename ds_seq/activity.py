"""What this process is doing: marks of progress and phases, which the watchdog reads.

Code that works for long calls `mark` after each piece of the work: an update, a batch, a step of a
search. Work whose pieces cannot be marked, such as writing one large file, is a `phase` that may
take longer. Both cost a microsecond, and have no effect in a process that nobody watches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HANG_SECONDS = 300.0
"""Default of the seconds without progress after which a process counts as hanging."""


@dataclass
class Activity:
    """What the process is doing.

    Attributes:
        marks: number of marks so far; only whether it changes has a meaning.
        marked: time of the last one, by `time.monotonic`.
        phase: name of the current phase.
        may_take_long: whether the phase may take several times as long without a mark.
        update: number of finished updates of a training, or of finished batches.
    """

    marks: int = 0
    marked: float = field(default_factory=time.monotonic)
    phase: str = "start"
    may_take_long: bool = True
    update: int = 0


CURRENT = Activity()
"""The activity of this process."""


def mark() -> None:
    """Note that the work has advanced."""
    CURRENT.marks += 1
    CURRENT.marked = time.monotonic()


def start() -> None:
    """Begin to work: models are loaded and built, and kernels compiled, which may take long."""
    CURRENT.phase, CURRENT.may_take_long, CURRENT.update = "start", True, 0
    mark()


def finished(phase: str, update: int) -> None:
    """Note that a first or another piece of the real work is done; the start is then over.

    Args:
        phase: what the pieces belong to, for people.
        update: number of finished pieces: updates of a training, else batches.
    """
    CURRENT.phase, CURRENT.may_take_long, CURRENT.update = phase, False, update
    mark()


@contextmanager
def phase(name: str, may_take_long: bool = False) -> Iterator[None]:
    """Name what happens in the block, and mark its start and its end.

    Args:
        name: what happens, for people.
        may_take_long: whether it may take several times as long without a mark.
    """
    before = CURRENT.phase, CURRENT.may_take_long
    CURRENT.phase, CURRENT.may_take_long = name, may_take_long
    mark()
    try:
        yield
    finally:
        CURRENT.phase, CURRENT.may_take_long = before
        mark()
