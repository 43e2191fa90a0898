"""Kill a process between any two of its file operations, for real."""

from __future__ import annotations

import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
_left: list[int] = []  # in a process that will be killed: operations until then


def die_after(operations: int) -> None:
    """Let SIGKILL end this process just before one of its next operations on files.

    Operations are: opening a file for writing, forcing it to the disk, renaming, removing, making
    and removing folders, links, modes. A file that was about to be forced to the disk loses its
    second half, like a write that was cut off, or a power cut.

    Args:
        operations: this many operations happen, and not one more.
    """
    _left.append(operations)
    sys.addaudithook(_on_event)
    os.fsync = _fsync  # a kill loses nothing that the kernel has, so there is nothing to wait for


def kills(work: Callable[[], None], moments: Iterable[int] | None = None) -> Iterator[int]:
    """Fork processes that do the work and are killed after this many operations.

    Args:
        work: what a process does.
        moments: numbers of operations; None: 0, 1, 2, ... until a process has come to its end.

    Yields:
        The number of operations, when the process has ended.
    """
    for operations in count() if moments is None else moments:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                die_after(operations)
                work()
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL), f"after {operations} operations: {ended}"
        yield operations
        if ended == 0:
            return


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it, hidden ones too: what a kill must not change."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _is_last() -> bool:
    if not _left:
        return False
    _left[0] -= 1
    return _left[0] < 0


def _die() -> NoReturn:
    _left.clear()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if (event in _CHANGES or is_write) and _left and _is_last():
        _die()


def _fsync(descriptor: int) -> None:
    if not _is_last():
        return
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        _left.clear()
        os.truncate(Path(f"/proc/self/fd/{descriptor}"), status.st_size // 2)
    _die()
