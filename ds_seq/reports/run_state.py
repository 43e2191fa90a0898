"""What has become of a run: read from its folder in a few milliseconds, without torch.

Only the ends of files that grow are read, so the length of a run does not matter. A run folder may
be damaged or half written; what cannot be read counts as missing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ds_seq.errors import UserError
from ds_seq.files import LOCK_FILE, is_locked
from ds_seq.names import CONFIG_FILE, HISTORY_FILE, LOG_FILE, METRICS_FILE, STARTS_FILE
from ds_seq.records import read_limited

STATES = ("running", "finished", "stopped", "crashed", "diverged")
"""`stopped`: by a signal or by `train.max_hours`, after a checkpoint; `crashed`: in any other way
that the training had not planned."""

_STATE_OF = {
    "max_updates": "finished",
    "max_epochs": "finished",
    "patience": "finished",
    "signal": "stopped",
    "max_hours": "stopped",
    "diverged": "diverged",
}
_KILLED = "ended without a message: killed, or its host was lost"
_BLOCK, _MOST_BYTES = 1 << 16, 1 << 22
_MOST_LEVELS = 5
_KIND = re.compile(rb'\{"kind": "([a-z]+)"')
# of a rank with all experts
_PARAMETERS = re.compile(r": ([\d,]{1,20}) parameters on this rank; .*, expert parallel 1, ")
_STOPPED = re.compile(r"stopped at update \d+ \((\w+)\)")


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        name: path of its folder below the folder that was searched.
        folder: its folder.
        state: one of `STATES`.
        update: number of the last recorded update.
        last_update: update at which it ends if nothing ends it earlier; None if unknown.
        best_by: name of the figure that decides which checkpoint is best; None if unknown.
        best_score: its best value.
        tokens_per_second: target tokens per second over all ranks at the last record.
        eta_seconds: time to the last update; None unless it runs.
        seen: time of the last record, in seconds since 1970.
        error: first line of the error that has ended it; empty if none has.
        tokens: target tokens that it has been trained on; None if unknown.
        parameters: number of parameters of its model; None if unknown.
    """

    name: str
    folder: Path
    state: str
    update: int = 0
    last_update: int | None = None
    best_by: str | None = None
    best_score: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    seen: float | None = None
    error: str = ""
    tokens: float | None = None
    parameters: int | None = None


def find_runs(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return name and folder of each run in, or below, some folders.

    Raises:
        UserError: a folder does not exist, or none of them holds a run.
    """
    runs: dict[Path, str] = {}
    taken: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: is no folder; give a run folder, or one that holds some")
        for run in _below(folder, _MOST_LEVELS):
            name = run.relative_to(folder).as_posix() if run != folder else folder.resolve().name
            if name in taken:  # of another folder
                name = run.as_posix()
            if run.resolve() not in runs:
                runs[run.resolve()] = name
                taken.add(name)
    if not runs:
        names = ", ".join(map(str, folders))
        raise UserError(f"{names}: no run folder in it or below it; train one with ds-seq train")
    return [(name, run) for run, name in runs.items()]


def _below(folder: Path, levels: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in (METRICS_FILE, STARTS_FILE)):
        yield folder
        return
    if levels == 0:
        return
    try:
        with os.scandir(folder) as entries:
            below = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:  # a folder of somebody else
        return
    for name in below:
        yield from _below(folder / name, levels - 1)


def newest_first(path: Path, without: Container[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines from its end; skip lines that are no records.

    Args:
        path: the file; it may be missing. Its last 4 MiB are read, at most.
        without: kinds of records that are skipped; may grow while records are read.
    """
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        end, rest = file.seek(0, os.SEEK_END), b""
        first = max(0, end - _MOST_BYTES)
        while end > first:
            start = max(first, end - _BLOCK)
            file.seek(start)
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
            end = start
            yield from _records(lines, without)
        if first == 0:
            yield from _records([rest], without)


def _records(lines: Sequence[bytes], without: Container[str]) -> Iterator[dict[str, Any]]:
    for line in reversed(lines):
        kind = _KIND.match(line)  # parsing long records takes much longer
        if kind is not None and kind[1].decode() in without:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def read_state(name: str, folder: Path) -> RunState:
    """Return the state of the run in a folder."""
    start = next(newest_first(folder / STARTS_FILE), {})
    newest: dict[str, dict[str, Any]] = {}
    latest: dict[str, Any] = {}
    for record in newest_first(folder / METRICS_FILE, newest):
        latest = latest or record
        newest.setdefault(str(record.get("kind")), record)
        if "train" in newest and "valid" in newest:
            break
    train, valid = newest.get("train", {}), newest.get("valid", {})
    begun, seen = _begun(start), _number(latest.get("time"))
    is_end = latest.get("kind") == "end" and (begun is None or (seen or 0.0) >= begun - 1.0)
    state, error = _outcome(folder, latest if is_end else {}, start)
    update = max(_whole(train.get("update")), _whole(latest.get("update")))
    update = max(update, _whole(start.get("update")))
    last = _whole(start.get("last_update")) or _max_updates(folder)
    speed = (update - _whole(start.get("update"))) / ((seen or 0.0) - (begun or 0.0) or 1.0)
    eta = None
    if state == "running" and last is not None and seen and begun and seen > begun and speed > 0:
        eta = max(0.0, (last - update) / speed - (time.time() - seen))
    best_by = valid.get("best_by")
    return RunState(
        name,
        folder,
        state,
        update,
        last,
        best_by if isinstance(best_by, str) else None,
        _number(valid.get("best_score")),
        _number(train.get("tokens_per_second")),
        eta,
        seen or begun,
        error,
        _number(train.get("total_tokens")),
        _whole(start.get("parameters")) or _announced(folder / LOG_FILE),
    )


def _outcome(folder: Path, end: Mapping[str, Any], start: Mapping[str, Any]) -> tuple[str, str]:
    """Return state and error, given the record of the last start, and of its end if it has one."""
    if is_locked(folder / LOCK_FILE):
        return "running", ""
    if end:
        return _STATE_OF.get(str(end.get("reason")), "crashed"), str(end.get("error", ""))
    # earlier versions have noted it in the log only
    reason = "" if "last_update" in start else _stopped(folder / LOG_FILE)
    return (_STATE_OF[reason], "") if reason in _STATE_OF else ("crashed", _KILLED)


def _announced(log: Path) -> int | None:
    """Return the number of parameters that an earlier version has written to the log only."""
    try:
        with log.open("rb") as file:
            found = _PARAMETERS.search(file.read(_BLOCK).decode(errors="replace"))
    except OSError:
        return None
    return int(found[1].replace(",", "")) if found else None


def _stopped(log: Path) -> str:
    """Return the reason in the last line of a log, or an empty string."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
            *_, last = file.read().decode(errors="replace").strip().splitlines() or [""]
    except OSError:
        return ""
    found = _STOPPED.search(last)
    return found[1] if found else ""


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the newest settings of a run by dotted key; empty if they cannot be read."""
    try:
        content = json.loads(read_limited(folder / HISTORY_FILE))
        config = content["versions"][-1]["config"]
    except (OSError, UserError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return dict(_flat(config, "")) if isinstance(config, dict) else {}


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _max_updates(folder: Path) -> int | None:
    """Return `train.max_updates` of a run of an earlier version."""
    if (value := read_settings(folder).get("train.max_updates")) is not None:
        return _whole(value) or None
    try:
        text = read_limited(folder / CONFIG_FILE).decode(errors="replace")
    except (OSError, UserError):
        return None
    found = re.search(r"^  max_updates: (\d{1,15})$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _begun(start: Mapping[str, Any]) -> float | None:
    try:
        return datetime.strptime(str(start.get("time")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return None


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
