"""Commands of ds_seq under launchers that are killed or get signals: `measure` runs one case.

Used by `survival_launchers.py`, and by the tests of the same.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.hang_cases import (
    LAUNCHERS,
    PHASES,
    RANKS,
    Lab,
    environment,
    free_port,
    logged_updates,
)
from ds_seq.files import LOCK_FILE, heartbeats, is_locked
from ds_seq.files.heartbeats import Heartbeats
from ds_seq.runs.verification import verify
from ds_seq.supervision.processes import adopt_orphans

LIMIT = 90.0  # seconds in which all processes must have ended: two saves on a busy machine
_START = 180.0  # seconds until a command works, on a busy machine
_TRACEBACK = re.compile(r"^\S*Traceback \(most recent call last\)", re.MULTILINE)


MOMENTS = {"imports": 0.0, "start": 0.0, "work": 0.5}
"""Moment at which a launcher is hit -> seconds after it: the ranks have begun, and import or meet;
they build what they work with; they are at work."""


@dataclass
class Outcome:
    """What was left after a launcher was hit.

    Attributes:
        code: exit code of the launcher's command, as a shell has it; None: it did not end.
        seconds: seconds until the last process had ended; None: some ran on.
        left: processes that ran on, and were killed by the benchmark.
        codes: exit codes that the ranks have written, in no order; None: they were killed.
        tracebacks: number of tracebacks of ds_seq in the output.
        is_sound: whether no checkpoint is damaged, and nobody holds the lock of the run.
        update: newest update that is logged.
        saved: update of the newest checkpoint.
        text: the output.
    """

    code: int | None = None
    seconds: float | None = None
    left: int = 0
    codes: list[int | None] = field(default_factory=list)
    tracebacks: int = 0
    is_sound: bool = True
    update: int = 0
    saved: int = 0
    text: str = field(default="", repr=False)


@dataclass
class Launched:
    """A command under a launcher, and all processes that it has started.

    Attributes:
        command: the process of the command.
        log: file of what all of them print.
        beats: what the ranks say of themselves.
        family: all descendants seen so far.
    """

    command: subprocess.Popen[bytes]
    log: Path
    beats: Heartbeats
    family: dict[int, psutil.Process] = field(default_factory=dict)

    def look(self) -> None:
        """Note new descendants, also those whose parents have ended, and read the heartbeats."""
        for process in psutil.Process().children(recursive=True):
            self.family.setdefault(process.pid, process)
        self.beats.read()

    def running(self) -> list[psutil.Process]:
        """Return all processes of the command that still run."""
        self.look()
        self.command.poll()
        for process in self.beats.processes.values():  # SLURM starts them, not this process
            if process.is_running and process.pid not in self.family:
                self.family[process.pid] = psutil.Process(process.pid)
        found = [process for process in self.family.values() if _runs(process)]
        for pid in list(self.family):  # what this process has adopted
            if pid != self.command.pid:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except OSError:
                    continue
        return found

    def ranks(self) -> list[int]:
        """Return the numbers of the processes that run a command of ds_seq."""
        return [process.pid for process in self.beats.processes.values()]

    def is_at(self, moment: str, command: str) -> bool:
        """Return whether all ranks have come to a moment of `MOMENTS`."""
        self.look()
        found = list(self.beats.processes.values())
        if len(found) < RANKS:
            return False
        phases = PHASES[command] if moment == "work" else ("start",)
        return moment == "imports" or all(p.beat.get("phase") in phases for p in found)

    def end(self) -> None:
        """Kill all that is left."""
        for process in self.running():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.command.kill()
        self.command.wait()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


Target = Callable[[Launched], int]
"""A process of a launcher that is hit: its number."""


def _command(run: Launched) -> int:
    return run.command.pid


def _inner(run: Launched) -> int:
    """The parent of the ranks: `deepspeed.launcher.launch`, where `deepspeed` is the command."""
    return int(psutil.Process(run.ranks()[0]).ppid())


ALL_LAUNCHERS = {
    **LAUNCHERS,
    # on the cluster of `SLURM_CONF`
    "srun": lambda words: [
        [
            *("srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"),
            *(sys.executable, "-m", "ds_seq", *words),
        ]
    ],
}
TARGETS: dict[str, tuple[str, Target]] = {
    "torchrun": ("torchrun", _command),
    "deepspeed": ("deepspeed", _command),
    "deepspeed.launcher.launch": ("deepspeed", _inner),
    "mpirun": ("mpirun", _command),
    "srun": ("srun", _command),
    "slurmstepd": ("srun", _inner),
}
"""Process that is hit -> launcher, and how it is found."""


def launch(launcher: str, words: Sequence[str], folder: Path) -> Launched:
    """Start a command of ds_seq under a launcher; its output goes to `folder`/log."""
    adopt_orphans()
    beats, log = folder / "beats", folder / "log"
    beats.mkdir()
    [line] = ALL_LAUNCHERS[launcher](words)
    port = str(free_port())
    environ = {**environment(), heartbeats.FOLDER: str(beats)}
    with log.open("wb") as file:
        command = subprocess.Popen(
            [word.replace("{port}", port) for word in line],
            stdout=file,
            stderr=file,
            env=environ,
            start_new_session=True,
            preexec_fn=_as_in_a_terminal,
        )
    return Launched(command, log, Heartbeats(beats))


def _as_in_a_terminal() -> None:
    """Let a hang-up have its usual effect: under `nohup` it would be ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def measure(
    lab: Lab,
    command: str,
    target: str,
    number: signal.Signals,
    moment: str,
    more: Sequence[str] = (),
    folder: Path | None = None,
) -> Outcome | str:
    """Send a signal to a process of a launcher, and wait until all of its processes have ended.

    Args:
        lab: text, shards and a model.
        command: a command of `hang_cases.COMMANDS`.
        target: one of `TARGETS`.
        number: the signal.
        moment: one of `MOMENTS`.
        more: further arguments of the command.
        folder: where the command writes; None: a temporary folder.

    Returns:
        What was left, or why the case could not be run.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return measure(lab, command, target, number, moment, more, Path(name))
    launcher, find = TARGETS[target]
    run = launch(launcher, [*lab.arguments(command, folder), *more], folder)
    try:
        deadline = time.monotonic() + _START
        while not run.is_at(moment, command):
            if time.monotonic() > deadline or run.command.poll() is not None:
                return f"did not start: {run.log.read_text(errors='replace')[-500:]}"
            time.sleep(0.02)
        time.sleep(MOMENTS[moment])
        os.kill(find(run), number)
        return _outcome(run, folder)
    finally:
        run.end()


def _outcome(run: Launched, folder: Path) -> Outcome:
    hit, outcome = time.monotonic(), Outcome()
    while (left := run.running()) and time.monotonic() - hit < LIMIT:
        time.sleep(0.05)
    if not left:
        outcome.seconds = time.monotonic() - hit
    outcome.left = len(left)
    code = run.command.poll()
    outcome.code = 128 - code if code is not None and code < 0 else code
    outcome.text = run.log.read_text(errors="replace")
    # launchers print some of their own: torchrun's agent at every signal, `deepspeed` at SIGINT
    outcome.tracebacks = sum("/ds_seq/" in text for text in _TRACEBACK.split(outcome.text)[1:])
    run.beats.read()
    outcome.codes = [process.code for process in run.beats.processes.values()]
    outcome.is_sound = _is_sound(folder / "run")
    outcome.update = max(logged_updates(folder / "run"), default=0)
    outcome.saved = saved_update(folder / "run")
    return outcome


def saved_update(run: Path) -> int:
    """Return the update of the newest checkpoint of a run; 0 without one."""
    names = [path.parent.name[7:] for path in run.glob("checkpoints/update_*/checkpoint.json")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _is_sound(run: Path) -> bool:
    """Return whether the files of a run are intact, and another process could take it over."""
    if is_locked(run / LOCK_FILE):
        return False
    return saved_update(run) == 0 or all(finding.is_sound for finding in verify(run))


def facts(outcome: Outcome) -> dict[str, Any]:
    """Return what is recorded of an outcome."""
    values = {key: value for key, value in vars(outcome).items() if key != "text"}
    return {**values, "note": outcome.text[-1500:]}


if __name__ == "__main__":
    sys.exit("see survival_launchers.py")
