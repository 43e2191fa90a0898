"""Time several pieces of code in turns, so that ratios are meaningful on any machine.

Every side has one turn per round, and the order rotates from round to round, so that other load on
the machine affects all sides equally. Ratios are taken within a round. Standard library only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """Time per call of one side in one round."""

    seconds: float
    cpu_seconds: float
    """Processor time of all threads."""


@dataclass(frozen=True)
class Rounds:
    """Times of all sides.

    Args:
        turns: turns by side, one per round.
    """

    turns: Mapping[str, list[Turn]]

    @property
    def count(self) -> int:
        """Number of rounds."""
        return min(len(turns) for turns in self.turns.values())

    def seconds(self, side: str) -> list[float]:
        """Seconds per call, round by round."""
        return [turn.seconds for turn in self.turns[side]]

    def ratios(self, side: str, to: str) -> list[float]:
        """Time per call of `side` divided by that of `to`, round by round."""
        return [
            turn.seconds / reference.seconds
            for turn, reference in zip(self.turns[side], self.turns[to], strict=True)
        ]

    def busy(self, threads: int) -> float:
        """Share of the time in which the threads ran; lower on a machine with other load."""
        turns = [turn for side in self.turns.values() for turn in side]
        wall = sum(turn.seconds for turn in turns)
        return sum(turn.cpu_seconds for turn in turns) / (threads * wall)


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = math.inf,
    turn_seconds: float = 0.05,
) -> Rounds:
    """Time all sides in turns.

    Args:
        sides: the code of each side, by name.
        rounds: maximum number of rounds.
        seconds: time after which no round begins, provided there have been two.
        turn_seconds: shortest duration of a turn; a shorter call is repeated.
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
    """Return the number of calls per turn; warms up too, since the first calls are slower."""
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
