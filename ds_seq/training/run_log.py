"""Logs of a run: text, JSON lines, TensorBoard curves and images, and a progress bar."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from tqdm import tqdm

from ds_seq import files
from ds_seq.distributed.signals import leave_closed
from ds_seq.errors import UserError
from ds_seq.names import LOG_FILE, METRICS_FILE
from ds_seq.reports.heat_map import Panel, draw_heat_map
from ds_seq.training.trackers import Tracker

_FIGURES = ("train", "valid")
OLD = ".old"
"""Suffix of records that a run which starts over does not continue."""
_LONGEST_ERROR = 1000


class RunLog:
    """Writes on rank 0; on other ranks every method does nothing.

    Args:
        folder: the run folder, which receives `train.log`, `metrics.jsonl` and `tensorboard/`.
        active: whether this is rank 0.
        tensorboard: whether to write event files, too.
        total_updates: length of the progress bar.
        done_updates: where the progress bar starts.
        settings: hyper-parameters, which TensorBoard shows next to the last figures.
        trackers: other places for the figures.

    Attributes:
        folder: the run folder, on all ranks.
    """

    def __init__(
        self,
        folder: Path,
        active: bool,
        tensorboard: bool,
        total_updates: int,
        done_updates: int,
        settings: Mapping[str, Any] = MappingProxyType({}),
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._active, self.folder = active, folder
        self._settings, self._trackers = settings, list(trackers)
        self._final: dict[str, float] = {}
        self._text, self._path = folder / LOG_FILE, folder / METRICS_FILE
        self._file: TextIO | None = None
        self._writer: Any = None
        self._bar: Any = None
        self._total, self._first, self._begun = total_updates, done_updates, time.monotonic()
        if not active:
            return
        _forget_after(self._path, done_updates)
        with files.writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with files.writing(folder / "tensorboard"):
                self._writer = SummaryWriter(
                    str(folder / "tensorboard"), purge_step=done_updates + 1
                )
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total_updates, initial=done_updates, unit="update", dynamic_ncols=True
            )

    def record(self, kind: str, update: int, figures: Mapping[str, Any]) -> None:
        """Record `figures` of `train` or `valid`; a list becomes one curve per element."""
        if self._file is None:
            return
        line = {"kind": kind, "update": update, "time": round(time.time(), 1), **figures}
        finite = {name: _finite(value) for name, value in line.items()}
        with files.writing(self._path):
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")
            self._file.flush()
        if self._writer is not None:
            with files.writing(self._path.with_name("tensorboard")):
                self._record_curves(kind, update, figures)
        numbers = {f"{kind}/{name}": float(v) for name, v in figures.items() if _is_number(v)}
        if kind == "valid":
            self._final = numbers
        for tracker in list(self._trackers):
            self._try(tracker, lambda to: to.record(numbers, update))  # noqa: B023

    def _try(self, tracker: Tracker, use: Callable[[Tracker], None]) -> None:
        """Use a tracker; report and leave out one that fails."""
        try:
            use(tracker)
        except Exception as error:
            self._trackers.remove(tracker)
            what = (str(error).splitlines() or [type(error).__name__])[0]
            which = "a tracker (train.trackers, or on_figures of ds_seq.fit)"
            self.say(f"ds-seq: warning: {which} has failed: {what}")

    def _record_curves(self, kind: str, update: int, figures: Mapping[str, Any]) -> None:
        for name, value in figures.items():
            tag = name if name.startswith("moe/") and kind == "train" else f"{kind}/{name}"
            if isinstance(value, list):
                for index, element in enumerate(value):
                    if isinstance(element, int | float):
                        self._writer.add_scalar(f"{tag}/{index}", element, update)
            elif isinstance(value, int | float):
                self._writer.add_scalar(tag, value, update)
            elif name == "samples":  # indented, so that it is shown as it is
                self._writer.add_text(tag, textwrap.indent(str(value), "    "), update)
        self._writer.flush()

    def _record_settings(self) -> None:
        """Write hyper-parameters with the figures of the last validation."""
        from torch.utils.tensorboard import summary

        hparams: Any = summary.hparams  # torch has no types for it
        settings = {
            key: value if isinstance(value, bool | str | int | float) else str(value)
            for key, value in self._settings.items()
        }
        names = {name: value for name, value in self._final.items() if name.count("/") == 1}
        final = {f"final/{name.removeprefix('valid/')}": names[name] for name in names}
        for each in hparams(settings, final):
            self._writer.file_writer.add_summary(each)
        for name, value in final.items():
            self._writer.add_scalar(name, value)
        self._writer.flush()

    def end(self, update: int, reason: str, error: BaseException | None = None) -> None:
        """Record why the run has ended, unless the disk that has ended it cannot take that either.

        Args:
            update: number of the last update.
            reason: see `TrainingResult.reason`; `diverged` or `error` if `error` has ended it.
            error: what has ended the run.
        """
        message = "" if error is None else (str(error) or type(error).__name__)
        why = {"error": message.splitlines()[0][:_LONGEST_ERROR]} if message else {}
        with nullcontext() if error is None else suppress(UserError):
            self.record("end", update, {"reason": reason, **why})
            self.note(f"stopped at update {update} ({reason}){': ' if why else ''}{message}")
            if self._writer is not None and self._settings:
                with files.writing(self._path.with_name("tensorboard")):
                    self._record_settings()
        for tracker in list(self._trackers):
            self._try(tracker, lambda to: to.end(error is None))

    def picture(self, tag: str, update: int, panel: Panel | None) -> None:
        """Add a heat map to the event files; do nothing if `panel` is None."""
        if self._writer is None or panel is None:
            return
        self._writer.add_image(tag, draw_heat_map([panel]), update, dataformats="HWC")
        self._writer.flush()

    def go_back(self, update: int) -> None:
        """Forget the figures of updates after `update`, which the run repeats; keep its events."""
        if self._file is None:
            return
        self._file.close()
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _update_of(line) is not None]
        kept = [
            line
            for line in kept
            if (_update_of(line) or 0) <= update or json.loads(line)["kind"] not in _FIGURES
        ]
        with files.writing(self._path):
            files.write_bytes(self._path, b"".join(kept))
            self._file = self._path.open("a", encoding="utf-8")
        if self._writer is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer.close()
            folder = str(self._path.with_name("tensorboard"))
            self._writer = SummaryWriter(folder, purge_step=update + 1)
        if self._bar is not None:
            self._bar.update(update - self._bar.n)

    def advance(self, update: int, brief: Mapping[str, str] | None = None) -> None:
        """Move the progress bar to `update`; without a terminal, print `brief` as a line."""
        if not self._active:
            return
        shown = [f"{name} {value}" for name, value in (brief or {}).items()]
        line = " | ".join([f"update {update}", *shown, f"ETA {self._eta(update)}"])
        if brief:
            self.note(line)
        if self._bar is not None:
            self._bar.update(update - self._bar.n)
            if brief:
                self._bar.set_postfix(brief)
        elif brief:
            with _console():
                print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a message, above the progress bar if there is one."""
        if self._active:
            self.note(text)
            with _console():
                tqdm.write(text, file=sys.stderr)
                sys.stderr.flush()

    def note(self, text: str) -> None:
        """Write a message to the log file only."""
        if self._active:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            lines = "".join(f"{now} {line}\n" for line in text.splitlines())
            with files.writing(self._text), self._text.open("ab") as file:
                file.write(lines.encode(errors="backslashreplace"))

    def _eta(self, update: int) -> str:
        """Return the time until the last update at the mean speed so far, validations included."""
        done = update - self._first
        if done <= 0:
            return "unknown"
        left = (self._total - update) * (time.monotonic() - self._begun) / done
        hours, seconds = divmod(round(max(left, 0.0)), 3600)
        return f"{hours}:{seconds // 60:02}:{seconds % 60:02}"

    def close(self) -> None:
        """Close the files and the progress bar."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self._bar is not None:
            self._bar.close()


def _forget_after(path: Path, update: int) -> None:
    """Drop records of updates that a resumed run repeats, and a line cut off by a crash.

    If all records would be dropped, the file is kept under another name: the checkpoints may have
    been lost in a copy. So it is if more than the last line is not a record.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    updates = [_update_of(line) for line in lines]
    if (update == 0 and lines) or None in updates[:-1]:
        with files.writing(path):
            os.replace(path, _unused(path.with_name(path.name + OLD)))
    kept = [
        line for line, of in zip(lines, updates, strict=True) if of is not None and of <= update
    ]
    if kept or path.exists():
        files.write_bytes(path, b"".join(kept))


def _update_of(line: bytes) -> int | None:
    """Return the update of a record; None if the line is not a record."""
    try:
        update = json.loads(line)["update"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return update if isinstance(update, int) else None


def _unused(path: Path) -> Path:
    """Return the path, with a number if there is such a file already."""
    names = (path.with_name(f"{path.name}{number}") for number in count(2))
    return next(name for name in chain([path], names) if not name.exists())


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, as of an overflowing norm, by null: JSON has neither."""
    if isinstance(value, list):
        return [_finite(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _console() -> Iterator[None]:
    """Write to the terminal; a training outlives one that has closed, and so does its log file."""
    try:
        yield
    except OSError:
        leave_closed()
