"""Forked ranks of `ds-seq train` that can be killed or sent signals, and that leave nothing."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ds_seq import errors
from ds_seq import train as train_command
from tests.distributed.harness import torch_launcher
from tests.ports import free_port

_GRACE = 20.0  # seconds between SIGTERM and SIGKILL for ranks that have lost another one


class Outcome(NamedTuple):
    """How the ranks of a run have ended."""

    codes: list[int | None]
    """Exit codes; the negative number of a signal that ended a rank; None: it did not end."""
    text: str
    """What they have printed."""


class Ranks:
    """The processes of a run.

    Args:
        arguments: of `ds-seq train`.
        world_size: number of processes.
        log: file of what they print.
    """

    def __init__(self, arguments: Sequence[str], world_size: int, log: Path) -> None:
        context, port = mp.get_context("fork"), free_port()
        self._log = log
        log.write_text("", encoding="utf-8")
        self._processes = [
            context.Process(
                target=_rank, args=(arguments, torch_launcher(rank, world_size, port), log)
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def send(self, ranks: Iterable[int], number: signal.Signals) -> None:
        """Send a signal to some ranks."""
        for rank in ranks:
            pid = self._processes[rank].pid
            assert pid is not None
            os.kill(pid, number)

    def kill(self, ranks: Iterable[int]) -> None:
        """Send SIGKILL to some ranks that still run."""
        self.send([rank for rank in ranks if self._processes[rank].is_alive()], signal.SIGKILL)

    def has_ended(self) -> bool:
        """Return whether no rank runs any more."""
        return not any(process.is_alive() for process in self._processes)

    def wait_until(self, condition: Callable[[], bool], limit: float) -> None:
        """Wait for something to happen, for the end of the run, or for the limit in seconds."""
        deadline = time.monotonic() + limit
        while not condition() and not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.002)

    def wait(self, limit: float) -> Outcome:
        """Wait for the end of all ranks, at most this many seconds."""
        self.wait_until(lambda: False, limit)
        codes = [process.exitcode for process in self._processes]
        self.end()
        return Outcome(codes, self._log.read_text(encoding="utf-8", errors="replace"))

    def end(self) -> None:
        """End what is left, as launchers do that have lost a rank: SIGTERM, then SIGKILL."""
        deadline = time.monotonic() + _GRACE
        if any(process.exitcode == -signal.SIGKILL for process in self._processes):
            deadline = time.monotonic() + 1.0
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.1))
            process.kill()
            process.join()


def peak_memory(outcome: Outcome) -> int:
    """Return the largest memory of a rank in KiB."""
    marks = [line for line in outcome.text.splitlines() if line.startswith("peak memory: ")]
    return max(int(line.split()[-1]) for line in marks)


def _rank(arguments: Sequence[str], environ: dict[str, str], log: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it would be ignored under `nohup`
    gc.freeze()
    os.environ.update(environ)
    torch.set_num_threads(1)
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    try:
        code = errors.run_command(train_command.main, list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
    file.flush()
    os._exit(code)
