"""Takes the time of several pieces of code by turns, so that ratios mean something on any machine.

In a round every side has its turn, and the order rotates from round to round: whatever else the
machine does hits all alike. Ratios are taken within a round. Standard library only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One side's turn in one round, per call."""

    seconds: float
    cpu_seconds: float
    """Processor time, of all threads."""


@dataclass(frozen=True)
class Rounds:
    """What all sides took.

    Args:
        turns: by side, one for each round.
    """

    turns: Mapping[str, list[Turn]]

    @property
    def count(self) -> int:
        """How many rounds there were."""
        return min(len(turns) for turns in self.turns.values())

    def seconds(self, side: str) -> list[float]:
        """Seconds a call, round by round."""
        return [turn.seconds for turn in self.turns[side]]

    def ratios(self, side: str, to: str) -> list[float]:
        """How many times as long a call of ``side`` took, round by round."""
        return [
            mine.seconds / theirs.seconds
            for mine, theirs in zip(self.turns[side], self.turns[to], strict=True)
        ]

    def busy(self, threads: int) -> float:
        """Share of the time in which the threads ran; less on a machine that others use as well."""
        turns = [turn for side in self.turns.values() for turn in side]
        wall = sum(turn.seconds for turn in turns)
        return sum(turn.cpu_seconds for turn in turns) / (threads * wall)


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = math.inf,
    turn_seconds: float = 0.05,
) -> Rounds:
    """Measures.

    Args:
        sides: the code, by name.
        rounds: how many rounds.
        seconds: begin no round later than this, once there have been two.
        turn_seconds: a turn repeats a call that is shorter than this until it takes as long.
    """
    repeats = {name: _repeats(call, turn_seconds) for name, call in sides.items()}
    begin = time.monotonic()
    names = list(sides)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(rounds):
        if number >= 2 and time.monotonic() - begin > seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(_turn(sides[name], repeats[name]))
    return Rounds(turns)


def _repeats(call: Callable[[], object], turn_seconds: float) -> int:
    """How many calls make a turn; warms up on the way: the first calls are not like the others."""
    taken = _turn(call, 1).seconds
    if taken < 10 * turn_seconds:
        taken = min(taken, _turn(call, 2).seconds)
    return max(1, math.ceil(turn_seconds / max(taken, 1e-9)))


def _turn(call: Callable[[], object], repeats: int) -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(wall / repeats, cpu / repeats)
