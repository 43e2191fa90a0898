"""Child processes that train on command, so that several systems can take turns in one run.

A child answers one JSON line when it is ready and one for every ``run N``; whatever it or its
libraries print goes to a log file. Between two commands it blocks on its input and costs nothing.
Standard library only: a child may run under another interpreter than the parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Block:
    """What a number of consecutive updates took."""

    updates: int
    seconds: float
    target_tokens: int
    cpu_seconds: float
    """Processor time, of all threads."""
    loss: float
    """Of the last update, nats a target token, without label smoothing."""

    @property
    def speed(self) -> float:
        """Target tokens a second."""
        return self.target_tokens / self.seconds

    @property
    def cpu_speed(self) -> float:
        """Target tokens a second of processor time: what is left to compare on a busy machine."""
        return self.target_tokens / self.cpu_seconds


class Worker:
    """The parent's end of one child.

    Args:
        name: what tables call it.
        command: the child's command line.
        log: where its output goes.
        environment: variables set for it on top of the inherited ones.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log = log
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **environment},
            )
        answer = self._answer()
        self.num_parameters = int(answer["num_parameters"])
        self.versions = str(answer["versions"])

    def run(self, updates: int) -> Block:
        """Lets the child train and waits for it."""
        assert self._process.stdin is not None
        print(f"run {updates}", file=self._process.stdin, flush=True)
        return Block(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self._process.wait()
        tail = "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-20:])
        raise SystemExit(f"{self.name} ended with status {status}; the end of {self._log}:\n{tail}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Stopwatch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def block(self, updates: int, target_tokens: int, loss: float) -> Block:
        """Returns what was done in the meantime."""
        seconds, cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Block(updates, seconds, target_tokens, cpu_seconds, loss)


class Channel:
    """The child's end: answers go to the parent, everything else that is printed to the log.

    Make one before importing libraries that print.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def ready(self, num_parameters: int, versions: str) -> None:
        """Say that training can begin."""
        self._answer({"num_parameters": num_parameters, "versions": versions})

    def command(self) -> int | None:
        """Wait for the next command; returns how many updates to do, or None at the end."""
        line = sys.stdin.readline()
        return int(line.removeprefix("run ")) if line else None

    def done(self, block: Block) -> None:
        """Report a finished command."""
        self._answer(asdict(block))

    def _answer(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)
