"""Shared parts of all benchmarks: goals, tables, the machine and the record in RESULTS.md.

Uses only the standard library, so that any interpreter can import it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Goal:
    """A measured figure and its goal.

    Args:
        name: what was measured.
        figure: the measured value.
        bound: the value to reach.
        unit: unit written after both numbers.
        at_least: whether the bound is a minimum (True) or a maximum.
    """

    name: str
    figure: float
    bound: float
    unit: str = ""
    at_least: bool = True

    @property
    def reached(self) -> bool:
        """Whether the goal is reached; NaN never reaches it."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    def __str__(self) -> str:
        sign, verdict = (">=" if self.at_least else "<="), ("reached" if self.reached else "SHORT")
        return (
            f"goal: {self.name}: {self.figure:.3g}{self.unit}, "
            f"wanted {sign} {self.bound:g}{self.unit}: {verdict}"
        )


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeated measurements."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        """Return `median (lowest-highest)`."""
        low, mid, high = (f"{v:,.{digits}f}" for v in (self.lowest, self.median, self.highest))
        return f"{mid} ({low}-{high})"


@dataclass(frozen=True)
class Section:
    """The outcome of one section of a benchmark.

    Args:
        title: heading of the section.
        body: tables and remarks.
        goals: goals of the section.
    """

    title: str
    body: str
    goals: Sequence[Goal] = ()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rules), *(line(row) for row in rows)])


def machine() -> str:
    """Return the processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def command_line() -> str:
    """Return the command line of this script, with file names but without their folders."""
    return " ".join(word.rpartition("/")[2] for word in sys.argv)


def timed_command(*words: object) -> float:
    """Run a command of ds-seq on one thread; return its processor time in seconds.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ds_seq", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by all benchmarks."""
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 3 minutes")
    parser.add_argument(
        "--record", action="store_true", help=f"append the output to {RESULTS.name}"
    )


def finish(title: str, body: str, goals: Sequence[Goal], record: bool) -> int:
    """Print the outcome, record it if requested, and return the exit status.

    Args:
        title: heading of the entry in RESULTS.md; the date is prepended.
        body: tables and remarks.
        goals: the goals, printed last, one per line.
        record: whether to append the output to RESULTS.md.

    Returns:
        1 if a goal is missed, else 0.
    """
    verdicts = "\n".join(str(goal) for goal in goals)
    print(f"\n{body}\n\n{verdicts}", flush=True)
    if record:
        entry = (
            f"\n## {datetime.date.today().isoformat()} {title}\n\n"
            f"`{command_line()}` on {machine()}, Python {platform.python_version()}\n\n"
            f"{body}\n\n```\n{verdicts}\n```\n"
        )
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(entry)
    return 0 if all(goal.reached for goal in goals) else 1
