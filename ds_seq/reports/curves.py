"""The figures of a run over time, read from its `metrics.jsonl` while it grows.

Loads neither torch nor numpy: `ds-seq runs --serve` and `ds-seq plot` start at once.

Shapes: `E` experts, `N` records.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ds_seq.errors import UserError
from ds_seq.names import LAYER_NAMES, METRICS_FILE

Axis = Literal["updates", "tokens", "hours"]
AXES: dict[Axis, str] = {
    "updates": "updates",
    "tokens": "target tokens",
    "hours": "hours of training",
}
"""What curves may be drawn over, and its label."""
VALID = "valid/"
"""Prefix of the figures of validations."""
BEST = "best"
"""Stands for the figure that decides which checkpoint of a run is best."""
SAMPLES = "samples"
"""Key of a validation with a few translations as text."""

_LOAD = re.compile(r"moe/layer(\d{1,4})/load(?:/(.+))?")
_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 24


class Grown(NamedTuple):
    """What has been added to a file.

    Attributes:
        lines: complete lines, without their ends.
        is_new: whether they are the first ones: of a file that is new, or has been replaced.
    """

    lines: Iterator[bytes]
    is_new: bool


class GrowingFile:
    """A file of lines that somebody else appends to, or writes again from its beginning.

    Args:
        path: the file; it may be missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._read_to = -1, 0

    def grown(self) -> Grown:
        """Return what has been added since the last call; a line without its end has to wait.

        Raises:
            OSError: the file cannot be read.
        """
        stat = self._path.stat()
        is_new = stat.st_ino != self._inode or stat.st_size < self._read_to
        if is_new:
            self._inode, self._read_to = stat.st_ino, 0
        return Grown(self._lines(), is_new)

    def _lines(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            rest = b""
            while block := file.read(_BLOCK):
                rest, *lines = (rest + block).split(b"\n")[::-1]
                for line in reversed(lines):
                    self._read_to += len(line) + 1
                    yield line
                if len(rest) > _LONGEST_LINE:  # no record; what follows is none either
                    return


class Curve:
    """A figure by update: numbers, packed.

    Attributes:
        updates: (N,) updates, ascending.
        values: (N,) values.
    """

    def __init__(self) -> None:
        self.updates, self.values = array("q"), array("d")

    def add(self, update: int, value: float) -> None:
        """Add a point; it replaces those from its update on, which a run has repeated."""
        while self.updates and self.updates[-1] >= update:
            self.updates.pop()
            self.values.pop()
        self.updates.append(update)
        self.values.append(value)


class Loads:
    """The shares of a layer's experts by update.

    Attributes:
        updates: (N,) updates, ascending.
        shares: N rows (E,), each share between 0 and 1.
    """

    def __init__(self) -> None:
        self.updates = array("q")
        self.shares: list[array[float]] = []

    def add(self, update: int, shares: array[float]) -> None:
        """Add a row; see `Curve.add`."""
        while self.updates and self.updates[-1] >= update:
            self.updates.pop()
            self.shares.pop()
        self.updates.append(update)
        self.shares.append(shares)

    def at(self, update: int) -> Sequence[float]:
        """Return the row of an update, or of the last one before it; empty before the first."""
        place = bisect_right(self.updates, update)
        return self.shares[place - 1] if place else ()


@dataclass
class RunCurves:
    """The figures of a run.

    Attributes:
        name: name in the legend.
        best_by: name of the figure that decides which checkpoint is best; empty if unknown.
        figures: curves by name; those of validations begin with `valid/`.
        loads: shares of experts by `train`, `valid` or `valid/<file>` and the number of the layer.
        layers: names of the layers with experts.
        translations: those of each validation, as text, by update.
        damaged: number of lines that are no records.
    """

    name: str
    best_by: str = ""
    figures: dict[str, Curve] = field(default_factory=dict)
    loads: dict[str, dict[int, Loads]] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    translations: dict[int, str] = field(default_factory=dict)
    damaged: int = 0
    _tokens: Curve = field(default_factory=Curve)
    _hours: Curve = field(default_factory=Curve)

    def add(self, line: bytes) -> None:
        """Add a line of `metrics.jsonl`."""
        record = _record(line)
        if record is None:
            self.damaged += 1
            return
        kind, update = record["kind"], record["update"]
        if kind not in ("train", "valid"):
            return
        is_train = kind == "train"
        prefix = "" if is_train else VALID
        for key, value in record.items():
            if isinstance(value, list):
                self._add_loads(kind, update, key, value)
            elif (number := _number(value)) is not None:
                self.figures.setdefault(prefix + key, Curve()).add(update, number)
        names = record.get(LAYER_NAMES)
        if isinstance(names, list):
            self.layers = [str(name) for name in names]
        if is_train:
            self._add_progress(update, record)
        else:
            self._add_validation(update, record)

    def _add_validation(self, update: int, record: Mapping[str, Any]) -> None:
        if isinstance(record.get("best_by"), str):
            self.best_by = record["best_by"]
        for later in [number for number in self.translations if number >= update]:
            del self.translations[later]
        if isinstance(record.get(SAMPLES), str):
            self.translations[update] = record[SAMPLES]

    def _add_loads(self, kind: str, update: int, key: str, value: list[Any]) -> None:
        found = _LOAD.fullmatch(key)
        if found is None:
            return
        try:
            shares = array("f", value)
        except (TypeError, OverflowError):  # a null, of a figure that was not finite
            return
        of = f"{kind}/{found[2]}" if found[2] else kind
        self.loads.setdefault(of, {}).setdefault(int(found[1]), Loads()).add(update, shares)

    def _add_progress(self, update: int, record: Mapping[str, Any]) -> None:
        for curve in (self._tokens, self._hours):  # a run that repeats updates begins behind them
            curve.add(update, 0.0)
        before = self._tokens.updates[-2] if len(self._tokens.updates) > 1 else 0
        spent = {
            "tokens": _number(record.get("tokens")) or 0.0,
            "hours": (_number(record.get("seconds_per_update")) or 0.0) * (update - before) / 3600,
        }
        for curve, added in zip((self._tokens, self._hours), spent.values(), strict=True):
            last = curve.values[-2] if len(curve.values) > 1 else 0.0
            curve.values[-1] = last + added

    def known_best(self) -> str:
        """Return `best_by`, or the figure that it probably is."""
        return self.best_by or next((n for n in ("bleu", "loss") if VALID + n in self.figures), "")

    def curve(self, figure: str, axis: Axis) -> tuple[list[float], list[float]]:
        """Return a figure over an axis as lists of x and y; empty if the run does not have it."""
        if figure == VALID + BEST:
            figure = VALID + self.known_best()
        curve = self.figures.get(figure)
        if curve is None:
            return [], []
        xs = [float(u) if axis == "updates" else self._at(u, axis) for u in curve.updates]
        return xs, list(curve.values)

    def _at(self, update: int, axis: Axis) -> float:
        """Return tokens or hours at an update, linear between the records of training."""
        curve = self._tokens if axis == "tokens" else self._hours
        after = bisect_left(curve.updates, update)
        if after == len(curve.updates):
            return curve.values[-1] if after else 0.0
        left = (curve.updates[after - 1], curve.values[after - 1]) if after else (0, 0.0)
        right = (curve.updates[after], curve.values[after])
        part = (update - left[0]) / ((right[0] - left[0]) or 1)
        return left[1] + part * (right[1] - left[1])


class FollowedRun:
    """The figures of a run that may still be trained: only what has been added is read.

    Args:
        name: name of the run.
        folder: its folder.

    Attributes:
        curves: the figures that have been read.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.curves = RunCurves(name)
        self._file = GrowingFile(folder / METRICS_FILE)

    def read(self) -> RunCurves:
        """Read what has been added, and return all figures.

        Raises:
            OSError: the file cannot be read.
        """
        grown = self._file.grown()
        if grown.is_new:
            self.curves = RunCurves(self.curves.name)
        for line in grown.lines:
            self.curves.add(line)
        return self.curves


def read_curves(name: str, folder: Path) -> RunCurves:
    """Read the figures of a run; lines that are no records are skipped.

    Raises:
        UserError: the run has no figures.
    """
    try:
        run = FollowedRun(name, folder).read()
    except OSError as error:
        raise UserError(
            f"{folder / METRICS_FILE}: cannot be read ({error.strerror}); give the folders of "
            "runs that have trained"
        ) from None
    if not run.figures:
        raise UserError(f"{folder / METRICS_FILE}: has no figures yet; wait for train.log_every")
    return run


def thinned(xs: list[float], ys: list[float], most: int) -> tuple[list[float], list[float]]:
    """Return at most about `most` points of a curve: the extremes of each of equal parts.

    Args:
        xs: (N,) ascending.
        ys: (N,) values.
        most: number of points, at least 2.
    """
    if len(xs) <= most:
        return xs, ys
    parts, chosen = max(most // 2, 1), {0, len(xs) - 1}
    for part in range(parts):
        span = range(len(xs) * part // parts, len(xs) * (part + 1) // parts)
        chosen |= {min(span, key=ys.__getitem__), max(span, key=ys.__getitem__)}
    places = sorted(chosen)
    return [xs[place] for place in places], [ys[place] for place in places]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        known = isinstance(record["kind"], str) and isinstance(record["update"], int)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return record if known and abs(record["update"]) < 1 << 62 else None


def _number(value: object) -> float | None:
    """Return a value as a number; None if it is none, or has no place in a picture."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
