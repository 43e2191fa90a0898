"""Run folders as a server shows them: what has become of them, and their figures over time.

Nothing is written. A run is asked for by its name and looked up among those that were found, so no
path comes from a request. What has been read is kept and only what has been added is read again.

Shapes: `E` experts, `N` points in time.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from ds_seq.errors import UserError
from ds_seq.files import LOCK_FILE, is_locked
from ds_seq.names import HISTORY_FILE, LOG_FILE, METRICS_FILE, STARTS_FILE
from ds_seq.plugins import nearest
from ds_seq.reports.curves import VALID, Axis, Curve, FollowedRun, RunCurves, thinned
from ds_seq.reports.run_state import RunState, find_runs, read_settings, read_state
from ds_seq.reports.run_table import differences
from ds_seq.serving.runs.answers import (
    CurvePoints,
    Curves,
    Differences,
    ExpertMaps,
    FigureNames,
    LayerLoads,
    Row,
    Samples,
    Sentence,
    Table,
)
from ds_seq.text.samples import read_samples

DELETED = "deleted"
MOST_RUNS = 28
"""Most runs whose curves are shown together: as many as their lines can be told apart."""
_MOST_FOLLOWED = 4 * MOST_RUNS
_MOST_COLUMNS = 240  # points in time of a map
_STATE_FILES = (METRICS_FILE, STARTS_FILE, LOG_FILE)

T = TypeVar("T")
Marks = tuple[tuple[int, int, int] | None, ...]


def _marks(folder: Path, names: Sequence[str]) -> Marks:
    """Return what changes when one of some files does."""
    marks: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            stat = os.stat(folder / name)
            marks.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            marks.append(None)
    return tuple(marks)


class _Kept:
    """Results by run, each read again when the files that it depends on have changed."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._known: dict[Path, tuple[Marks, Any]] = {}

    def get(self, folder: Path, read: Callable[[], T]) -> T:
        marks = _marks(folder, self._files)
        known = self._known.get(folder)
        if known is None or known[0] != marks:
            self._known[folder] = known = (marks, read())
        result: T = known[1]
        return result


class Board:
    """The runs in some folders.

    Args:
        folders: run folders, or folders that hold some.

    Attributes:
        lock: held while figures are read; whoever asks several times for the same ones holds it.

    Raises:
        UserError: a folder does not exist, or none of them holds a run.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._found: dict[str, Path] = dict(find_runs(folders))
        self._last: dict[str, RunState] = {}
        self._states, self._settings = _Kept(_STATE_FILES), _Kept((HISTORY_FILE,))
        self._followed: OrderedDict[str, FollowedRun] = OrderedDict()
        self._table_lock = threading.Lock()
        self.lock = threading.RLock()

    def table(self) -> Table:
        """Return all runs, those that have been deleted meanwhile included."""
        with self._table_lock:
            self._search()
            rows = [self._row(name, folder) for name, folder in self._found.items()]
        return Table(folders=[str(folder) for folder in self._folders], runs=rows)

    def _search(self) -> None:
        """Find runs that are new; those that are gone stay known."""
        for folder in self._folders:
            try:
                found = find_runs([folder])
            except UserError:  # all are gone
                continue
            known = set(self._found.values())
            for name, run in found:
                if run not in known:
                    self._found[name if name not in self._found else run.as_posix()] = run

    def _row(self, name: str, folder: Path) -> Row:
        before = self._last.get(name)
        if not folder.is_dir():
            known = before or RunState(name, folder, DELETED)
            error = f"{folder}: the folder is gone"
            state = replace(known, state=DELETED, eta_seconds=None, error=error)
        else:
            lock = folder / LOCK_FILE
            if before is not None and (before.state == "running") == is_locked(lock):
                state = self._states.get(folder, partial(read_state, name, folder))
            else:
                state = read_state(name, folder)
        self._last[name] = state
        record = asdict(state)
        record.pop("folder")
        record["error"] = "; ".join(filter(None, (state.error, self._complaint(name))))
        return Row(**record)

    def _complaint(self, name: str) -> str:
        """Return what is wrong with the figures of a run, as far as they have been read."""
        followed = self._followed.get(name)
        count = 0 if followed is None else followed.curves.damaged
        lines = "line is" if count == 1 else "lines are"
        return f"{METRICS_FILE}: {count} {lines} no record" if count else ""

    def differences(self, names: Sequence[str]) -> Differences:
        """Return the settings in which some runs differ.

        Args:
            names: names of runs; none of them: all.

        Raises:
            UserError: there is no such run.
        """
        chosen = list(dict.fromkeys(names)) or list(self._found)
        settings = {}
        for name in chosen:
            folder = self._folder(name)
            with self._table_lock:
                settings[name] = self._settings.get(folder, partial(read_settings, folder))
        unread = [name for name in chosen if not settings[name]]
        return Differences(runs=chosen, settings=differences(settings), without=unread)

    def figure_names(self, names: Sequence[str]) -> FigureNames:
        """Return the figures that some runs have; of single layers, the entropy only.

        Raises:
            UserError: there is no such run, or too many of them.
        """
        with self.lock:
            runs = self._curves(names)
            known = dict.fromkeys(name for run in runs for name in run.figures)
            best = dict.fromkeys(VALID + run.known_best() for run in runs if run.known_best())
        plain = [
            name
            for name in known
            if name.split("/")[-1] not in _NO_CURVE
            and ("moe/layer" not in name or name.endswith("/entropy"))
        ]
        return FigureNames(names=plain, best=list(best))

    def curves(
        self, names: Sequence[str], figures: Sequence[str], axis: Axis, most: int | None
    ) -> Curves:
        """Return figures of runs.

        Args:
            names: names of runs.
            figures: names of figures; `valid/best` is that which decides which checkpoint is best.
            axis: what to draw over.
            most: most points of a curve; None: all.

        Raises:
            UserError: there is no such run, or too many of them, or none has such a figure.
        """
        result = []
        with self.lock:
            runs = self._curves(names)
            for run, figure in product(runs, dict.fromkeys(figures)):
                xs, ys = run.curve(figure, axis)
                if most is not None:
                    xs, ys = thinned(xs, ys, most)
                if xs:
                    result.append(CurvePoints(run=run.name, figure=figure, x=xs, y=ys))
            damaged = {run.name: run.damaged for run in runs if run.damaged}
        return Curves(axis=axis, curves=result, damaged=damaged)

    def run_curves(self, names: Sequence[str]) -> list[RunCurves]:
        """Return all figures of runs, which do not change while the caller holds `lock`.

        Raises:
            UserError: there is no such run, or too many of them.
        """
        return self._curves(names)

    def experts(self, name: str, of: str) -> ExpertMaps:
        """Return the loads of the experts of a run over time.

        Args:
            name: name of the run.
            of: a group of tokens, see `ExpertMaps.groups`; where the run has no such group, its
                first one.

        Raises:
            UserError: there is no such run.
        """
        with self.lock:
            (run,) = self._curves([name])
            of = of if of in run.loads else next(iter(run.loads), of)
            loads = run.loads.get(of, {})
            updates = sorted({update for layer in loads.values() for update in layer.updates})
            chosen = _spread(updates, _MOST_COLUMNS)
            layers = [_layer(run, of, index, chosen) for index in sorted(loads)]
            groups = list(run.loads)
        return ExpertMaps(run=name, of=of, groups=groups, updates=chosen, layers=layers)

    def samples(self, name: str) -> Samples:
        """Return the translations of the validations of a run, by sentence.

        Raises:
            UserError: there is no such run.
        """
        with self.lock:
            (run,) = self._curves([name])
            texts, best_by = dict(sorted(run.translations.items())), run.known_best()
            scores = _values(run.figures.get(VALID + best_by), list(texts))
        found: dict[tuple[str, str | None], dict[int, str]] = {}
        for update, text in texts.items():
            for sample in read_samples(text):
                key = (sample.source, sample.reference)
                found.setdefault(key, {})[update] = sample.translation
        sentences = [
            Sentence(source=source, reference=reference, translations=[*map(known.get, texts)])
            for (source, reference), known in found.items()
        ]
        return Samples(
            run=name, updates=list(texts), scores=scores, best_by=best_by, sentences=sentences
        )

    def _folder(self, name: str) -> Path:
        folder = self._found.get(name)
        if folder is None:
            hint = nearest(name, list(self._found))
            raise UserError(f"run={name}: no such run{hint}; /runs lists them")
        return folder

    def _curves(self, names: Sequence[str]) -> list[RunCurves]:
        """Return the figures of runs, after what has been added to them was read."""
        chosen = list(dict.fromkeys(names))
        if len(chosen) > MOST_RUNS:
            raise UserError(f"{len(chosen)} runs; choose at most {MOST_RUNS} of them")
        with self.lock:
            return [self._follow(name, self._folder(name)) for name in chosen]

    def _follow(self, name: str, folder: Path) -> RunCurves:
        run = self._followed.pop(name, None) or FollowedRun(name, folder)
        self._followed[name] = run
        while len(self._followed) > _MOST_FOLLOWED:
            self._followed.popitem(last=False)
        try:
            return run.read()
        except OSError:  # not written yet, or deleted: what has been read is still of use
            return run.curves


_NO_CURVE = ("update", "time", "best_score")


def _layer(run: RunCurves, of: str, index: int, updates: Sequence[int]) -> LayerLoads:
    """Return the loads of a layer at some updates."""
    loads = run.loads[of][index]
    rows = [loads.at(update) for update in updates]
    key = f"moe/layer{index}/" if of == "train" else f"{VALID}moe/layer{index}/"
    whole = of in ("train", VALID.rstrip("/"))  # of single files, nothing else is recorded
    return LayerLoads(
        name=run.layers[index] if index < len(run.layers) else f"layer {index}",
        num_experts=max(map(len, rows), default=0),
        shares=[[share * len(row) for share in row] for row in rows],
        entropy=_values(run.figures.get(key + "entropy") if whole else None, updates),
        dropped=_values(run.figures.get(key + "dropped") if whole else None, updates),
    )


def _values(curve: Curve | None, updates: Sequence[int]) -> list[float | None]:
    """Return the values of a curve at some updates; None where it has none."""
    known = {} if curve is None else dict(zip(curve.updates, curve.values, strict=True))
    return [known.get(update) for update in updates]


def _spread(updates: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of some updates, the first and the last among them."""
    if len(updates) <= most:
        return list(updates)
    return [updates[round(place * (len(updates) - 1) / (most - 1))] for place in range(most)]
