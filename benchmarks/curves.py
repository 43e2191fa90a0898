"""Learning curves: when one first reaches the level of another, and their record on disk.

Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """One validation of one run."""

    system: str
    seed: int
    update: int
    seconds: float
    """Training time since the first update, without validation and start-up."""
    target_tokens: int
    """Target tokens trained on so far."""
    bleu: float
    loss: float
    """Nats per target token, without label smoothing."""
    valid_seconds: float
    """Duration of this validation."""


class Curve:
    """The validations of one run, in order, starting from an untrained model.

    Args:
        points: validations of one system and seed.
        vocab_size: vocabulary size, which gives the loss of an untrained model.
    """

    def __init__(self, points: Sequence[Point], vocab_size: int) -> None:
        self.points = sorted(points, key=lambda point: point.update)
        self._ignorance = math.log(vocab_size)

    def against(self, axis: str, figure: str) -> list[tuple[float, float]]:
        """Return the curve as (x, y), where higher is better.

        Args:
            axis: `update` or `seconds`.
            figure: `bleu`, or `loss`, which is negated.
        """
        sign, start = (1.0, 0.0) if figure == "bleu" else (-1.0, -self._ignorance)
        points = [asdict(point) for point in self.points]
        return [(0.0, start), *((float(p[axis]), sign * float(p[figure])) for p in points)]

    @property
    def best_bleu(self) -> Point:
        """The first of the best validations by BLEU."""
        return max(self.points, key=lambda point: point.bleu)

    @property
    def best_loss(self) -> Point:
        """The first of the best validations by loss."""
        return min(self.points, key=lambda point: point.loss)


def first_reach(curve: Sequence[tuple[float, float]], level: float) -> float:
    """Return the x at which a curve, linear between its points, first reaches `level`.

    Args:
        curve: (x, y) by increasing x.
        level: the level to reach.

    Returns:
        NaN if it never does.
    """
    before: tuple[float, float] | None = None
    for x, y in curve:
        if y >= level:
            if before is None:
                return x
            old_x, old_y = before
            return old_x + (x - old_x) * (level - old_y) / (y - old_y)
        before = x, y
    return math.nan


def reach_ratio(
    curve: Sequence[tuple[float, float]], reference: Sequence[tuple[float, float]], share: float = 1
) -> float:
    """Return the share of the reference's x that a curve needs to reach the same level.

    Args:
        curve: (x, y) by increasing x; both begin at the same level.
        reference: the other curve, in the same form.
        share: the level, from the start (0) to the reference's best (1).

    Returns:
        Less than 1 if the curve is faster; infinity if it never reaches the level.
    """
    start, best = reference[0][1], max(y for _, y in reference)
    # in this form a share of 1 gives exactly the best, without rounding
    level = best - (1 - share) * (best - start)
    mine, theirs = first_reach(curve, level), first_reach(reference, level)
    if math.isnan(mine):
        return math.inf
    return mine / theirs if theirs > 0 else math.nan


class Record:
    """A file of JSON lines: the settings first, then one line per validation.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, settings: dict[str, Any]) -> None:
        """Start a new record."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")

    def add(self, point: Point) -> None:
        """Append a validation immediately, so that it survives an interruption."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")

    def read(self) -> tuple[dict[str, Any], list[Point]]:
        """Return the settings and all validations.

        Raises:
            ValueError: the file is not a record of curves; the message gives the line.
        """
        settings: dict[str, Any] | None = None
        points: list[Point] = []
        lines = self._path.read_text(encoding="utf-8").splitlines() or [""]
        for number, line in enumerate(lines, start=1):
            try:
                if settings is None:
                    settings = json.loads(line)["settings"]
                else:
                    points.append(Point(**json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self._path}:{number}: not a record of learning curves"
                ) from error
        assert settings is not None
        return settings, points


def curves_of(points: Iterable[Point], vocab_size: int) -> dict[int, dict[str, Curve]]:
    """Group validations into curves by seed, then by system."""
    sorted_out: dict[int, dict[str, list[Point]]] = {}
    for point in points:
        sorted_out.setdefault(point.seed, {}).setdefault(point.system, []).append(point)
    return {
        seed: {system: Curve(mine, vocab_size) for system, mine in systems.items()}
        for seed, systems in sorted_out.items()
    }
