"""The tables and the goals of `survival.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import Goal, Spread, table

Row = dict[str, Any]


def report(rows: Sequence[Row]) -> str:
    """Return the tables of all sections that have rows."""
    parts = (_kills, _signals, _damage, _layouts, _rounding, _memory, _stall)
    return "\n\n".join(text for part in parts if (text := part(rows)))


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Return the goals of all sections that have rows."""
    found = []
    for section, what, good in (
        ("kills", "kills survived exactly", lambda row: row["exact"]),
        ("signals", "signals answered with a checkpoint at an update", _is_answered),
        ("damage", "damages after which the run ends with the same weights", _is_repaired),
        ("layouts", "changes of layout that resume, with the same loss within 1e-4", _is_close),
    ):
        of_section = _of(rows, section)
        if of_section:
            share = sum(map(good, of_section)) / len(of_section)
            found.append(Goal(f"{what}, of {len(of_section)}", 100 * share, 100, "%"))
    if kills := _of(rows, "kills"):
        found.append(Goal("kills within a save", sum(row["in_save"] for row in kills), 40))
    if ratios := [row["resumed"] / row["fresh"] for row in _of(rows, "memory")]:
        name = "memory after resuming to that of a fresh run"
        found.append(Goal(name, max(ratios), 1.1, "x", at_least=False))
    if shares := [row["background"] / row["waiting"] for row in _of(rows, "stall")]:
        name = "stall of a save in the background, of one that is waited for"
        found.append(Goal(name, 100 * max(shares), 10, "%", at_least=False))
    return found


def _of(rows: Sequence[Row], section: str) -> list[Row]:
    return [row for row in rows if row["section"] == section]


def _is_answered(row: Row) -> bool:
    return bool(row["saved"]) and set(row["codes"]) == {0}


def _is_repaired(row: Row) -> bool:
    return bool(row["exact"]) and set(row["codes"]) == {0}


def _is_close(row: Row) -> bool:
    return row["difference"] is not None and row["loss_difference"] <= 1e-4


def _kills(rows: Sequence[Row]) -> str:
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in _of(rows, "kills"):
        kind = (
            "within a save" if row["in_save"] else "elsewhere",
            "in background" if row["background"] else "waited for",
            "one rank" if row["one_rank"] else "all ranks",
        )
        kinds.setdefault(kind, []).append(row)
    if not kinds:
        return ""
    lines = [
        (
            *kind,
            f"{sum(row['exact'] for row in found)} of {len(found)}",
            Spread.of([row["seconds_to_update"] for row in found]).text(1),
        )
        for kind, found in sorted(kinds.items())
    ]
    header = ("SIGKILL", "saves", "killed", "survived exactly", "s to the first new update")
    return "### Kills\n\n" + table(header, lines)


def _signals(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(row["signal"] for row in _of(rows, "signals"))
    if not names:
        return ""
    lines = []
    for name in names:
        found = [row for row in _of(rows, "signals") if row["signal"] == name]
        answered = f"{sum(map(_is_answered, found))} of {len(found)}"
        lines.append((name, answered, Spread.of([row["seconds"] for row in found]).text(1)))
    header = ("signal", "saved and ended", "s until all ranks had ended")
    return "### Signals\n\n" + table(header, lines)


def _damage(rows: Sequence[Row]) -> str:
    lines = [
        (
            row["file"],
            row["damage"],
            "yes" if row["named"] else "no",
            "yes" if _is_repaired(row) else "no",
        )
        for row in _of(rows, "damage")
    ]
    header = ("file of the newest checkpoint", "damage", "named", "same weights at the end")
    return "### Damaged files\n\n" + table(header, lines) if lines else ""


def _layouts(rows: Sequence[Row]) -> str:
    found = {(str(row["written"]), str(row["read"])): row for row in _of(rows, "layouts")}
    if not found:
        return ""
    names = list(dict.fromkeys(name for pair in found for name in pair))
    lines = [
        (name, *(_difference(found.get((name, other)), name == other) for other in names))
        for name in names
    ]
    whole = [row for row in found.values() if row["difference"] is not None]
    if not whole:
        return ""
    within = sum(row["difference"] <= 1e-4 for row in whole)
    apart = max(row["without_kill"] for row in whole)
    note = (
        f"{within} of {len(found)} are within 1e-4. Uninterrupted runs in two layouts, whose sums "
        f"are rounded differently, differ by up to {apart:.0e}; "
        "the losses of the last update differ by at most "
        f"{max(row['loss_difference'] for row in whole):.0e} of their value."
    )
    title = "### Layouts (ranks, expert parallel, stage of ZeRO): largest difference of a weight"
    return f"{title}\n\n{table(('killed in, resumed in', *names), lines)}\n\n{note}"


def _rounding(rows: Sequence[Row]) -> str:
    lines = [
        (str(row["layout"]), f"{row['copy']:.0e}", f"{row['moved']:.0e}")
        for row in _of(rows, "rounding")
    ]
    header = ("layout", "resumed as it is", "each weight moved to the next number of fp32")
    title = "### Rounding: largest difference of a weight to the uninterrupted run"
    return f"{title}\n\n{table(header, lines)}" if lines else ""


def _difference(row: Row | None, is_same: bool) -> str:
    if row is None:
        return "-" if is_same else ""
    return "failed" if row["difference"] is None else f"{row['difference']:.0e}"


def _memory(rows: Sequence[Row]) -> str:
    lines = [
        (
            f"{row['trial'] + 1}",
            f"{row['fresh'] / 1024:,.0f}",
            f"{row['resumed'] / 1024:,.0f}",
            f"{row['resumed'] / row['fresh']:.2f}",
        )
        for row in _of(rows, "memory")
    ]
    header = ("run", "fresh, MiB", "resumed, MiB", "ratio")
    return "### Peak memory of a rank\n\n" + table(header, lines) if lines else ""


def _stall(rows: Sequence[Row]) -> str:
    lines = [
        (
            " ".join(map(str, row["layout"])),
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['waiting']:.2f}",
            f"{row['background']:.3f}",
            f"{100 * row['background'] / row['waiting']:.1f}%",
            f"{row['alone']:.2f}",
            f"{row['update']:.2f}",
            f"{row['update_during']:.2f}",
        )
        for row in _of(rows, "stall")
    ]
    header = (
        "ranks, expert parallel, ZeRO",
        "MB",
        "s waited for",
        "s in background",
        "share",
        "s until complete",
        "s of an update",
        "s of one meanwhile",
    )
    return "### How long a save holds up training\n\n" + table(header, lines) if lines else ""
