"""What a check has found, and the table of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ds_seq.errors import escaped

Status = Literal["ok", "warn", "FAIL"]
_SEVERITY: dict[Status, int] = {"ok": 0, "warn": 1, "FAIL": 2}


class Finding(NamedTuple):
    """The result of one check."""

    check: str
    """What was checked."""
    status: Status
    text: str
    """What was found."""
    fix: str = ""
    """What to do about it."""
    numbers: tuple[tuple[str, float], ...] = ()
    """What was measured, by name; ranks whose findings differ in these only share a line."""

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Finding:
        """Return the finding of a list that was read from JSON."""
        check, status, text, fix, numbers = fields
        pairs = tuple((str(name), float(value)) for name, value in numbers)
        return cls(check, status, text, fix, pairs)


class Row(NamedTuple):
    """A finding that some ranks have in common."""

    finding: Finding
    """That of the first rank."""
    ranks: tuple[int, ...]
    ranges: dict[str, tuple[float, float]]
    """Smallest and largest of each number over the ranks."""

    @property
    def text(self) -> str:
        """What was found, with the numbers."""
        spans = [f"{name} {_span(least, most)}" for name, (least, most) in self.ranges.items()]
        return ", ".join(filter(None, [self.finding.text, *spans]))


def merged(of_ranks: dict[int, Sequence[Finding]]) -> list[Row]:
    """Merge the findings that are the same on several ranks, in the order of the checks.

    Args:
        of_ranks: findings of each rank that has answered.
    """
    groups: dict[Finding, dict[int, Finding]] = {}
    for rank, findings in sorted(of_ranks.items()):
        for finding in findings:
            groups.setdefault(finding._replace(numbers=()), {})[rank] = finding
    order = {check: n for n, check in enumerate(dict.fromkeys(found.check for found in groups))}
    rows = []
    for found in groups.values():
        values: dict[str, list[float]] = {}
        for finding in found.values():
            for name, value in finding.numbers:
                values.setdefault(name, []).append(value)
        ranges = {name: (min(each), max(each)) for name, each in values.items()}
        rows.append(Row(next(iter(found.values())), tuple(found), ranges))
    return sorted(rows, key=lambda row: (order[row.finding.check], row.ranks[0]))


def worst(rows: Sequence[Row]) -> Status:
    """Return the most severe status."""
    return max((row.finding.status for row in rows), key=lambda s: _SEVERITY[s], default="ok")


def table(rows: Sequence[Row], world_size: int) -> str:
    """Format findings, with what to fix below each line that needs it."""
    margin = max(len(row.finding.check) for row in rows)
    lines = []
    for row in rows:
        found = row.finding
        where = "" if len(row.ranks) == world_size else f"{shown_ranks(row.ranks)}: "
        lines.append(f"{found.status:<4}  {found.check:<{margin}}  {escaped(where + row.text)}")
        if found.fix:
            lines.append(f"{'':<4}  {'':<{margin}}  -> {escaped(found.fix)}")
    return "\n".join(lines)


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return findings for JSON."""
    return [
        {**row.finding._asdict(), "numbers": row.ranges, "ranks": list(row.ranks)} for row in rows
    ]


def _span(least: float, most: float) -> str:
    low, high = f"{least:.3g}", f"{most:.3g}"
    return low if low == high else f"{low} to {high}"


def shown_ranks(ranks: Sequence[int]) -> str:
    """Format numbers of ranks, such as `ranks 0-3, 6`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"
