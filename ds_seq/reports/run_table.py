"""A table of runs: what has become of them, and how their settings differ."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ds_seq.errors import escaped
from ds_seq.reports.run_state import STATES, RunState

_LEAST_ERROR = 20  # columns of the last column on a narrow terminal
_LONGEST_VALUE = 30

SORT_KEYS: dict[str, Callable[[RunState], Any]] = {
    "name": lambda run: run.name,
    "state": lambda run: STATES.index(run.state),
    "update": lambda run: run.update,
    "best": lambda run: run.best_score,
    "tokens/s": lambda run: run.tokens_per_second,
    "eta": lambda run: run.eta_seconds,
    "seen": lambda run: run.seen,
}
"""What a table may be sorted by."""


def sorted_runs(runs: Sequence[RunState], key: str, descending: bool) -> list[RunState]:
    """Return runs in the order of one of `SORT_KEYS`, those without a value last."""
    value = SORT_KEYS[key]
    known = [run for run in runs if value(run) is not None]
    unknown = [run for run in runs if value(run) is None]
    return [*sorted(known, key=value, reverse=descending), *unknown]


def differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the settings in which runs differ: key -> name of the run -> value as text.

    Of a section that only some runs have, such as `model.moe`, it is said which ones have it; what
    belongs to one kind of a part only, such as a criterion, is left out.

    Args:
        settings: name of a run -> its settings by dotted key. A run without any is left out.
    """
    known = {name: values for name, values in settings.items() if values}
    keys = dict.fromkeys(key for values in known.values() for key in values)
    rows: dict[str, dict[str, str]] = {}
    for key in keys.keys() - {"name", "run_dir"}:
        values = {name: _setting(of_run, key) for name, of_run in known.items()}
        if "" not in values.values() and len(set(values.values())) > 1:
            rows[key] = values
    return {key: rows[key] for key in keys if key in rows}


def _setting(settings: Mapping[str, Any], key: str) -> str:
    """Return a setting as text; an empty string if the run has none of that name."""
    if key in settings:
        value = settings[key]
        return value if isinstance(value, str) else json.dumps(value)
    return "a section" if any(name.startswith(f"{key}.") for name in settings) else ""


def run_table(
    runs: Sequence[RunState], changed: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Format runs as a table with a row for each.

    Args:
        runs: the runs.
        changed: result of `differences`, for more columns.
    """
    changed = changed or {}
    heads = ["run", "state", "update", "best", "tokens/s", "ETA", "seen"]
    rows = [[*_cells(run), *(_value(changed[key], run) for key in changed)] for run in runs]
    lines = _aligned([[*heads, *changed], *rows])
    if any(run.error for run in runs):
        errors = ["error", *(escaped(run.error) for run in runs)]
        room = _room(max(map(len, lines)) + 2)
        lines = [f"{line}  {_cut(e, room)}" for line, e in zip(lines, errors, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _cells(run: RunState) -> list[str]:
    most = "?" if run.last_update is None else f"{run.last_update:,}"
    best = "-" if run.best_score is None else f"{run.best_by or ''} {run.best_score:.2f}".strip()
    speed = "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}"
    eta = "-" if run.eta_seconds is None else duration(run.eta_seconds)
    seen = "-" if run.seen is None else f"{duration(time.time() - run.seen)} ago"
    return [escaped(run.name), run.state, f"{run.update:,}/{most}", best, speed, eta, seen]


def _value(values: Mapping[str, str], run: RunState) -> str:
    value = escaped(values.get(run.name, "-"))
    is_path = "/" in value  # whose end says more
    return _cut(value[::-1], _LONGEST_VALUE)[::-1] if is_path else _cut(value, _LONGEST_VALUE)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _room(used: int) -> int | None:
    """Return the columns that are left of a line on a terminal; None elsewhere: no limit."""
    if not sys.stdout.isatty():
        return None
    return max(_LEAST_ERROR, shutil.get_terminal_size().columns - used)


def _cut(text: str, length: int | None) -> str:
    return text if length is None or len(text) <= length else f"{text[: length - 3]}..."


def duration(seconds: float) -> str:
    """Format a time span with its two largest units, such as `3 d 4 h` or `1:05`, in minutes."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
