"""A command and all its descendants: started, reaped, and killed to the last."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ds_seq.errors import UserError

_PR_SET_CHILD_SUBREAPER = 36
_KILLING = 10.0  # seconds until a killed process must be gone; only a dead disk makes it take long


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parents end, so that none gets lost.

    Linux only; elsewhere, only processes in the group of the command are found.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class CommandProcess:
    """A command in a session of its own.

    Args:
        words: the command and its arguments.
        environ: variables in addition to those of this process.

    Raises:
        UserError: it cannot be started.
    """

    def __init__(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(
                list(words), env={**os.environ, **environ}, start_new_session=True
            )
        except OSError as error:
            raise UserError(
                f"{words[0]}: cannot be started: {error.strerror or error}; check the command "
                "after --"
            ) from error
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, minus the number of a signal that killed it; None: it runs."""
        code = self._process.poll()
        _reap(_descendants(os.getpid()) - {self.pid})
        return code

    def send(self, number: int, pids: Iterable[int]) -> None:
        """Send a signal to some processes, or to all descendants if there are none."""
        for pid in set(pids) or {self.pid, *_descendants(self.pid)}:
            with suppress(OSError):
                os.kill(pid, number)

    def kill_all(self, others: Iterable[int] = ()) -> list[int]:
        """Kill the command, all its descendants, stopped ones too, and `others`.

        Returns:
            Those that are still there after ten seconds.
        """
        deadline = time.monotonic() + _KILLING
        others = set(others)
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        while True:
            self._process.poll()
            left = _descendants(os.getpid()) | {pid for pid in others if _is_there(pid)}
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            _reap(left - {self.pid})
            left = {pid for pid in left if _is_there(pid)}
            if not left or time.monotonic() > deadline:
                return sorted(left)
            time.sleep(0.05)


def _reap(pids: Iterable[int]) -> None:
    """Collect the exit codes of adopted processes that have ended."""
    for pid in pids:
        with suppress(OSError):
            os.waitpid(pid, os.WNOHANG)


def _stat(pid: int | str) -> list[str]:
    """Return state, parent and further fields of a process; empty if it is not there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _is_there(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def _descendants(root: int) -> set[int]:
    """Return the children of a process, their children, and so on; zombies too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir() if os.path.isdir("/proc/self") else ():
        if entry.name.isdigit() and (fields := _stat(entry.name)):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found
