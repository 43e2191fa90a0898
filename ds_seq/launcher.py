"""The launcher that has started this process: find it, and notice when it has ended.

A launcher that is killed cannot end its ranks, which would work on with nobody to watch over them,
while a user or a scheduler believes that the run has ended and starts it again. A thread of each
rank therefore looks once a second whether its launcher is still there: `torchrun`'s agent, the two
processes of `deepspeed`, `mpirun` or its daemon, `slurmstepd`. If it is gone,

- a training saves and stops, like one that receives SIGTERM. Until it has ended, its lock keeps
  others out of the run folder;
- any other command ends at once. So does a training inside a SLURM job, because SLURM may already
  have started the job again, which takes over the lock of its earlier start.

A process that was not started by one of these launchers is not watched: a shell may end before what
it has started. Linux only; elsewhere nothing is watched.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from ds_seq.errors import EXIT_RANK_LOST
from ds_seq.files import heartbeats
from ds_seq.files.process import parent, start_time

_TURN = 1.0  # seconds
# what `torchrun`, `deepspeed`, Open MPI, MPICH and `srun` set for each process that they start
_MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_SLURM_STEP, _SLURM_JOB = "SLURM_STEP_ID", "SLURM_JOB_ID"
_DEEPSPEED = ("deepspeed", "ds", "deepspeed.launcher.runner")
_FIRST_INIT = 1
_STDERR = 2


class _Ancestor(NamedTuple):
    """A process that this one depends on.

    Attributes:
        pid: its number.
        started: when it was started; numbers are used again.
        name: its command, for people.
    """

    pid: int
    started: str
    name: str

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return start_time(self.pid) == self.started


class _Watch:
    """Watches some ancestors of this process in a thread, until one has ended."""

    def __init__(self, ancestors: list[_Ancestor]) -> None:
        self.on_loss: Callable[[], None] | None = None
        self._ancestors = ancestors
        self._ending = threading.Lock()
        threading.Thread(target=self._run, name="launcher", daemon=True).start()

    def lost(self) -> _Ancestor | None:
        """Return an ancestor that has ended, or None."""
        return next((each for each in self._ancestors if not each.is_running()), None)

    def end(self, lost: _Ancestor) -> NoReturn:
        """Say why, and end the process."""
        with self._ending:  # one thread says it
            _print(f"{_what(lost)}; ends with exit code {EXIT_RANK_LOST}\n")
            heartbeats.write("end", {"code": EXIT_RANK_LOST})
            os._exit(EXIT_RANK_LOST)

    def _run(self) -> None:
        while (lost := self.lost()) is None:
            time.sleep(_TURN)
        on_loss = self.on_loss
        if on_loss is None or _SLURM_JOB in os.environ:
            self.end(lost)
        _print(f"{_what(lost)}; the training saves and stops\n")
        on_loss()


def _what(lost: _Ancestor) -> str:
    who = f"its launcher ({lost.name}, process {lost.pid})"
    return f"ds-seq: process {os.getpid()}: {who} has ended"


_watch: _Watch | None = None


def watch() -> None:
    """Watch the launcher of this process from now on, if it has one."""
    global _watch
    if _watch is None and (ancestors := list(_launchers(os.environ))):
        _watch = _Watch(ancestors)


def when_lost(callback: Callable[[], None] | None) -> None:
    """Set what happens when the launcher has ended; None: the process ends.

    Args:
        callback: called in another thread; must let the process end soon.
    """
    if _watch is not None:
        _watch.on_loss = callback


def is_lost() -> bool:
    """Return whether the launcher has ended before this process."""
    return _watch is not None and _watch.lost() is not None


def end_if_lost() -> None:
    """End this process if its launcher has ended, which is then why other ranks are gone."""
    if _watch is not None and (lost := _watch.lost()) is not None:
        _watch.end(lost)


def _forget() -> None:
    """In a forked child: it has no thread, and a launcher of its own."""
    global _watch
    _watch = None


os.register_at_fork(after_in_child=_forget)


def _launchers(env: Mapping[str, str]) -> Iterator[_Ancestor]:
    """Find the launchers of this process: the nearest ancestors that lack their own variables.

    Scripts between a launcher and this process have inherited the variables.
    """
    for mark in _MARKS:
        if mark not in env or (mark == "SLURM_PROCID" and _SLURM_STEP not in env):
            continue
        pid = os.getppid()
        while pid > _FIRST_INIT and _has(pid, mark):
            pid = parent(pid)
        above = parent(pid) if pid > _FIRST_INIT else 0
        for each in (pid, above if _is_deepspeed(above) else 0):
            started = start_time(each) if each > _FIRST_INIT else None
            if started is not None and os.path.exists("/proc/self/environ"):
                yield _Ancestor(each, started, _command(each))


def _has(pid: int, mark: str) -> bool:
    """Return whether a process was started with a variable; not if that may not be read."""
    with suppress(OSError):
        content = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        return f"\0{mark}=".encode() in content
    return False


def _words(pid: int) -> list[str]:
    with suppress(OSError):
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
        return content.decode(errors="replace").rstrip("\0").split("\0")
    return []


def _command(pid: int) -> str:
    """Return the name of the program of a process, without Python and its options."""
    words = [word for word in _words(pid)[:4] if not word.startswith("-") and word.isprintable()]
    names = [os.path.basename(word) for word in words]
    is_python = len(names) > 1 and names[0].startswith("python")
    return names[int(is_python)] if names else "unknown"


def _is_deepspeed(pid: int) -> bool:
    """Return whether this is the command `deepspeed`, which waits for the launcher that it starts.

    On one machine it passes on no signal, so that only its end says that the run should end.
    """
    return any(os.path.basename(word) in _DEEPSPEED for word in _words(pid)[:3])


def _print(text: str) -> None:
    """Write to standard error, whose Python object another thread may hold."""
    with suppress(OSError):
        os.write(_STDERR, text.encode(errors="replace"))
