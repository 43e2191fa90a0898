"""Forked ranks that a test may kill or stop, and what each of them leaves."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ds_seq import errors
from tests.distributed.harness import torch_launcher
from tests.ports import free_port


class End(NamedTuple):
    """How a rank has ended.

    Attributes:
        code: exit code; the negative number of the signal that has killed it.
        text: what it has printed.
        seconds: seconds from the start of the waiting.
    """

    code: int
    text: str
    seconds: float


class Ranks:
    """The processes of a run, as `ranks` gives them."""

    def __init__(self, call: Callable[[], int], size: int, folder: Path) -> None:
        context, port = mp.get_context("fork"), free_port()
        self._texts = [folder / f"rank_{rank}.txt" for rank in range(size)]
        self._processes = [
            context.Process(
                target=_rank,
                args=(call, torch_launcher(rank, size, port), self._texts[rank]),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank."""
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def text(self, rank: int) -> str:
        """What a rank has printed so far."""
        path = self._texts[rank]
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_until(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait for something to happen while all ranks run."""
        deadline = time.monotonic() + timeout
        while not condition():
            texts = "\n".join(map(self.text, range(len(self._texts))))
            assert all(process.is_alive() for process in self._processes), texts
            assert time.monotonic() < deadline, texts
            time.sleep(0.01)

    def wait(self, ranks: Sequence[int], timeout: float) -> list[End]:
        """Wait for the end of some ranks.

        Raises:
            AssertionError: the time is up.
        """
        started, ends = time.monotonic(), []
        for rank in ranks:
            process = self._processes[rank]
            process.join(max(timeout - (time.monotonic() - started), 0.0))
            text = self.text(rank)
            assert process.exitcode is not None, f"rank {rank} runs after {timeout:g} s\n{text}"
            ends.append(End(process.exitcode, text, time.monotonic() - started))
        return ends

    def end(self) -> None:
        """Kill what is left."""
        for process in self._processes:
            process.kill()
            process.join()


def _rank(call: Callable[[], int], environ: dict[str, str], text: Path) -> None:
    gc.freeze()
    os.environ.update(environ)
    torch.set_num_threads(1)
    file = text.open("w", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file  # pytest has put its own there
    try:
        code = errors.run_command(lambda argv: call(), [])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    file.flush()
    os._exit(code)


@contextmanager
def ranks(call: Callable[[], Any], size: int, folder: Path) -> Iterator[Ranks]:
    """Start `call` in `size` processes; at the end of the block none of them is left."""
    processes = Ranks(call, size, folder)
    try:
        yield processes
    finally:
        processes.end()
