"""What one command knows of files that it has read or written, so that no byte is read twice.

Facts belong to a file as it is: its place on the disk, its size and the time of its last change.
They are kept inside `remembering` only, because nobody can tell two changes within a tick of the
file system's clock apart.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_RECENT_NS = 50_000_000  # coarser than the ticks of the clock of any local file system
_known: ContextVar[dict[tuple[int, ...], dict[str, Any]] | None] = ContextVar("known", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Keep facts about files inside the block; blocks within it share them."""
    if _known.get() is not None:
        yield
        return
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def is_remembering() -> bool:
    """Return whether facts are kept now."""
    return _known.get() is not None


def recall(path: str | Path, name: str) -> Any:
    """Return a fact about a file as it is now; None if there is none.

    Raises:
        OSError: the file does not exist, or cannot be seen.
    """
    known = _known.get()
    return None if known is None else known.get(_identity(os.stat(path)), {}).get(name)


def remember(path: str | Path, facts: dict[str, Any]) -> None:
    """Keep facts about a file that this process has just written and nobody else has changed.

    Raises:
        OSError: the file does not exist, or cannot be seen.
    """
    _keep(os.stat(path), facts)


def remember_read(before: os.stat_result, path: str | Path, facts: dict[str, Any]) -> None:
    """Keep facts about a file that this process has read.

    Nothing is kept if the file has changed meanwhile, or so shortly before that another change
    could not be told from that one.

    Args:
        before: status of the file when it was opened.
        path: the file.
        facts: facts by name.

    Raises:
        OSError: the file does not exist any more.
    """
    is_old = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _RECENT_NS
    if is_old and _identity(os.stat(path)) == _identity(before):
        _keep(before, facts)


def _keep(status: os.stat_result, facts: dict[str, Any]) -> None:
    known = _known.get()
    if known is not None and stat.S_ISREG(status.st_mode):
        known.setdefault(_identity(status), {}).update(facts)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
