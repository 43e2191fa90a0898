"""Child processes that train on command, so that several systems can take turns in one run.

A child writes one JSON line when it is ready and one after every command (`run N`, `validate`,
`save`); all other output goes to a log file. Between two commands it blocks on its input and uses
no processor time. A child may consist of several processes, of which the first one communicates.
Standard library only: a child may run under a different interpreter than the parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A command for a child."""

    verb: str
    """`run`, `validate` or `save`."""
    number: int = 0
    """Number of updates to `run`."""


@dataclass(frozen=True)
class Block:
    """Cost of consecutive updates, over all processes of the child."""

    updates: int
    seconds: float
    target_tokens: int
    cpu_seconds: float
    """Processor time of all threads."""
    loss: float
    """Loss of the last update in nats per target token, without label smoothing."""
    exchange_seconds: float = 0.0
    """Time exchanging rows between experts on several processes, including waits; mean."""
    reduce_seconds: float = 0.0
    """Time in all other collectives, including waits; mean over the processes."""

    @property
    def speed(self) -> float:
        """Target tokens per second."""
        return self.target_tokens / self.seconds

    @property
    def cpu_speed(self) -> float:
        """Target tokens per second of processor time, comparable even on a busy machine."""
        return self.target_tokens / self.cpu_seconds


@dataclass(frozen=True)
class Validation:
    """Cost and result of a pass over the held-out text."""

    seconds: float
    target_tokens: int
    cpu_seconds: float
    """Processor time of all threads and processes."""
    loss: float
    """Nats per target token, without label smoothing."""
    bleu: float | None = None
    """BLEU of the translations, if the child makes any."""

    @property
    def speed(self) -> float:
        """Target tokens per second."""
        return self.target_tokens / self.seconds


class Worker:
    """The parent's end of one child.

    Args:
        name: name in tables.
        command: the child's command line.
        log: log file of its output.
        environment: variables set in addition to the inherited ones.
        others: variables of further processes of the same child, such as their ranks; these
            receive no commands.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        others: Sequence[Mapping[str, str]] = (),
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
            self._others = [
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **variables},
                )
                for variables in others
            ]
        try:
            answer = self._answer()
        except BaseException:
            self._end(seconds=0)
            raise
        self.num_parameters = int(answer["num_parameters"])
        self.versions = str(answer["versions"])

    @property
    def resident_bytes(self) -> int:
        """Memory of the child's first process now."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def run(self, updates: int) -> Block:
        """Make the child train, and wait for it."""
        return Block(**self._ask(Command("run", updates)))

    def validate(self) -> Validation:
        """Make the child process the held-out text, and wait for it."""
        return Validation(**self._ask(Command("validate")))

    def save(self) -> None:
        """Make the child write a checkpoint."""
        self._ask(Command("save"))

    def _ask(self, command: Command) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the log of a dead child says more
            print(f"{command.verb} {command.number}", file=self._process.stdin, flush=True)
        return self._answer()

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
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._end(seconds=20)

    def _end(self, seconds: float) -> None:
        """Wait up to this long for all processes to exit, then kill them."""
        deadline = time.monotonic() + seconds
        for process in [self._process, *self._others]:
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Stopwatch:
    """Wall and processor time since construction."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def block(self, updates: int, target_tokens: int, loss: float) -> Block:
        """Return the work done since then."""
        seconds, cpu_seconds = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Block(updates, seconds, target_tokens, cpu_seconds, loss)


class Channel:
    """The child's end: answers go to the parent, all other output to the log.

    Create one before importing libraries that print.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def ready(self, num_parameters: int, versions: str) -> None:
        """Report that training can begin."""
        self._answer({"num_parameters": num_parameters, "versions": versions})

    def command(self) -> Command | None:
        """Wait for the next command; return None at the end."""
        words = sys.stdin.readline().split()
        return Command(words[0], int(words[1])) if words else None

    def done(self, result: Block | Validation | None = None) -> None:
        """Report a finished command."""
        self._answer({} if result is None else asdict(result))

    def _answer(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)
