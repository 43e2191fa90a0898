"""The folder of a run's checkpoints: what a kill or a copy may leave of it, and how to go on.

Checkpoints are the folders `update_<number>` with a `checkpoint.json`. `index.json` only adds
which of them are kept as the last and as the best; without it, it is made again from the folders.
Folders, files and links with other names belong to the user, and so does what a link points to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from typing_extensions import TypedDict

from ds_seq import distributed, files
from ds_seq.errors import UserError
from ds_seq.records import record
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.training.resume_state import WEIGHTS_ONLY, check_resumable
from ds_seq.weights import meta as checkpoint_meta
from ds_seq.weights.meta import (
    CHECKPOINTS,
    CHECKSUMS_KEY,
    EMA,
    INDEX_FILE,
    KINDS,
    META_FILE,
    CheckpointFiles,
    read_meta,
    write_meta,
)
from ds_seq.weights.source import TensorFolder, check_checkpoint

INCOMPLETE, REPLACED, ASIDE = ".incomplete", ".replaced", ".aside"
FORMER_KEY: Final = "former_best"
LISTS = ("last", "best", FORMER_KEY)  # in the index, which may lack the last one
SCORE_KEY: Final = "score"  # in META_FILE; older checkpoints have none of these
FIGURE_KEY: Final = "best_by"  # name of the score; also in the index
SINCE_KEY: Final = "best_since"  # update from which scores compare, if not all do; there, too

_WEIGHTS = ("weights.", f"{EMA}.")  # how the names of the files start that hold them

_NAME = re.compile(r"update_(\d{8,})")
_NAME_OR_REST = re.compile(rf"{_NAME.pattern}({INCOMPLETE}|{REPLACED}|{ASIDE}\d*)?")


@record
class _Score(TypedDict, total=False):
    """The part of `checkpoint.json` from which a lost index is made again."""

    score: float | None
    best_by: str | None
    best_since: int | None


def checkpoint_name(update: int) -> str:
    """Return the name of the checkpoint after `update` updates."""
    return f"update_{update:08d}"


def update_of(name: str) -> int:
    """Return the number of updates in the name of a checkpoint; -1 for any other name."""
    match = _NAME.fullmatch(name)
    return -1 if match is None else int(match[1])


def own_checkpoints(folder: Path) -> list[Path]:
    """Return the run's checkpoints, damaged ones too, the oldest first.

    A link in the place of one, which may have been moved to another disk, is one as well: it is
    read, and may be renamed, but what it points to is never changed.
    """
    own = (
        path
        for path in folder.glob("update_*")
        if update_of(path.name) >= 0 and (path.is_dir() or path.is_symlink())
    )
    return sorted(own, key=lambda path: update_of(path.name))


def replace(new: Path, final: Path) -> None:
    """Rename `new` to `final`; delete the old `final` only after the new one is in place.

    Raises:
        OSError: a folder cannot be renamed.
    """
    old = final.with_name(final.name + REPLACED)
    if final.exists():
        files.remove(old)
        final.rename(old)
    files.publish(new, final)
    files.remove(old)


def repair(folder: Path) -> None:
    """Finish or discard what a kill has interrupted. The caller holds the lock of the run.

    Raises:
        UserError: the folder cannot be written.
    """
    with files.writing(folder):
        files.remove_leftovers(folder)
        for path in own_checkpoints(folder):
            if not path.is_symlink():
                files.remove_leftovers(path)  # of `drop_state`
        for path in _unfinished(folder, INCOMPLETE):
            if _is_whole(path):  # its JSON file is written last: only the renaming is missing
                replace(path, path.with_name(path.name.removesuffix(INCOMPLETE)))
            else:
                files.remove(path)
        for path in _unfinished(folder, REPLACED):
            final = path.with_name(path.name.removesuffix(REPLACED))
            if final.exists():
                files.remove(path)
            else:  # interrupted between the two renames of `replace`
                path.rename(final)


def _unfinished(folder: Path, ending: str) -> list[Path]:
    paths = folder.glob(f"update_*{ending}")
    return [path for path in paths if update_of(path.name.removesuffix(ending)) >= 0]


def _is_whole(folder: Path) -> bool:
    try:
        meta: CheckpointFiles = read_meta(folder)
    except UserError:
        return False
    sizes = meta["files"].items()
    return not any(files.check_file(folder / name, size, None) for name, size in sizes)


def candidates(run: Path, which: str | None) -> list[Path]:
    """Return the checkpoints from which a run may resume, the preferred one first.

    Repairs the folder first, so the caller holds the lock of the run.

    Args:
        run: folder of the run.
        which: `best`, `last`, a name or a path; None: the newest that is not damaged.

    Raises:
        UserError: there is no such checkpoint.
    """
    folder = run / CHECKPOINTS
    if folder.is_dir():
        repair(folder)
    if which not in (None, "last"):
        return [find_checkpoint(run, str(which))]
    newest = own_checkpoints(folder)[::-1]
    if which is not None and not newest:
        raise UserError(f"--checkpoint {which}: {run} has no checkpoint; leave the option out")
    return newest[:1] if which is not None else newest


def first_sound(folders: Sequence[Path]) -> tuple[Path | None, list[str]]:
    """Return the first checkpoint that is not damaged, or None, and what is wrong with others.

    A collective: each rank reads its share of the files and compares checksums.
    """
    problems: list[str] = []
    for folder in folders:
        found: str | None = None
        try:
            _check(folder)
        except UserError as error:
            found = str(error)
        shares = distributed.gather_objects(found)
        problem = None if shares is None else next(filter(None, shares), None)
        problem = distributed.broadcast_object(problem)
        if problem is None:
            return folder, problems
        problems.append(problem)
    return None, problems


def without_advice(problem: str) -> str:
    """Return a message of `first_sound` without what the user should do, as in `damaged; copy`."""
    what, separator, _ = problem.rpartition("; ")
    return what if separator else problem


def _check(folder: Path) -> None:
    check_resumable(folder)
    check_checkpoint(folder, distributed.rank(), distributed.world_size())
    for kind in KINDS:
        TensorFolder(folder, kind, checked=True)


def set_aside(folder: Path, update: int) -> list[tuple[str, str]]:
    """Rename the checkpoints after `update`, from which the run has not resumed.

    They are kept, because they may be all that is left of days of work, but under names that
    later checkpoints do not need.

    Returns:
        Old and new name of each.

    Raises:
        UserError: a folder cannot be renamed.
    """
    renamed = []
    for path in own_checkpoints(folder):
        if update_of(path.name) <= update:
            continue
        new, number = path.with_name(path.name + ASIDE), 1
        while new.exists() or new.is_symlink():
            number += 1
            new = path.with_name(f"{path.name}{ASIDE}{number}")
        with files.writing(path):
            path.rename(new)
        renamed.append((path.name, new.name))
    return renamed


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index; None if it is missing or damaged."""
    try:
        index: dict[str, Any] = {**checkpoint_meta.read_index(folder)}
    except (FileNotFoundError, UserError):
        return None
    entries = [entry for key in LISTS for entry in index.get(key, ())]
    if any(update_of(entry["name"]) < 0 for entry in entries):
        return None
    return None if any(math.isnan(entry["score"]) for entry in index["best"]) else index


def names_in(index: Mapping[str, Any]) -> set[str]:
    """Return the names of all checkpoints that an index holds, and which are therefore kept."""
    return {entry["name"] for key in LISTS for entry in index.get(key, ())}


def without(index: Mapping[str, Any], test: Callable[[str], bool]) -> dict[str, Any]:
    """Return an index without the checkpoints whose name passes a test."""
    lists = {key: [e for e in index[key] if not test(e["name"])] for key in LISTS if key in index}
    return {**index, **lists}


def current_index(folder: Path, keep_last: int, figure: str | None, sign: float) -> dict[str, Any]:
    """Return the index, corrected by what is in the folder, or made from it.

    A checkpoint that was written just before a kill is added. Of a lost index, the newest
    checkpoints and those with a recorded score are restored; a checkpoint of an earlier version,
    whose score is unknown, is left out and therefore never deleted.

    Args:
        folder: folder of the checkpoints.
        keep_last: number of most recent checkpoints to keep.
        figure: name of the score; None for any.
        sign: 1.0 if a higher score is better, -1.0 otherwise.
    """
    paths = [path for path in own_checkpoints(folder) if (path / META_FILE).is_file()]
    names = [path.name for path in paths]
    stored = read_index(folder)
    index = without(stored or {"last": [], "best": []}, lambda name: name not in names)
    newest = max((update_of(entry["name"]) for entry in index["last"]), default=-1)
    scores = {path.name: _score(path) for path in paths if update_of(path.name) > newest}
    new = list(scores)
    for name in new if stored is not None else new[-keep_last:]:
        if stored is not None or name == names[-1] or SCORE_KEY in scores[name]:
            index["last"].append({"name": name, "score": scores[name].get(SCORE_KEY)})
    if stored is None and new and (since := scores[new[-1]].get(SINCE_KEY)) is not None:
        index[SINCE_KEY] = since
    _add_scored(index, scores, index.get(FIGURE_KEY, figure))
    index["best"].sort(key=lambda entry: -sign * float(entry["score"]))
    return index


def _add_scored(index: dict[str, Any], scores: Mapping[str, _Score], figure: str | None) -> None:
    """Add the validated checkpoints to the best ones, or to those that were it by another score."""
    held = {entry["name"] for key in LISTS[1:] for entry in index.get(key, ())}
    for name, found in scores.items():
        score, by = found.get(SCORE_KEY), found.get(FIGURE_KEY)
        if score is None or math.isnan(score) or name in held:
            continue
        is_same = figure is None or by is None or by == figure
        if is_same and found.get(SINCE_KEY) == index.get(SINCE_KEY):
            index["best"].append({"name": name, "score": score})
        else:
            former = {"name": name, "score": score, "by": by}
            index[FORMER_KEY] = [*index.get(FORMER_KEY, []), former]


def _score(path: Path) -> _Score:
    """Return what a checkpoint records about its score; nothing if it is damaged."""
    with suppress(UserError):
        return read_meta(path, _Score)
    return {}


def sweep(folder: Path, names: set[str]) -> None:
    """Delete checkpoints that the index no longer holds; never what a link points to."""
    for name in sorted(names):
        path = folder / name
        if not path.is_symlink() and (path / META_FILE).is_file():
            with suppress(OSError):  # disk space is no reason to end a training
                files.remove_folder(path)


def drop_state(folder: Path, names: set[str]) -> None:
    """Delete all but the weights of checkpoints; never of one that is a link.

    The JSON file is replaced first, so that a kill leaves a checkpoint with its state, or one
    without, of which some files may be left until the next call.
    """
    for name in sorted(names):
        path = folder / name
        state = [p for p in path.glob("*.safetensors") if not p.name.startswith(_WEIGHTS)]
        if path.is_symlink() or not state:
            continue
        with suppress(OSError, UserError):  # disk space is no reason to end a training
            meta: Mapping[str, Any] = read_meta(path)
            if CHECKSUMS_KEY not in meta:  # of an earlier version, whose file is not written again
                continue
            kept = {
                key: {file: part for file, part in meta[key].items() if file.startswith(_WEIGHTS)}
                for key in ("files", CHECKSUMS_KEY)
            }
            write_meta(path, {**meta, **kept, WEIGHTS_ONLY: True})
            for part in state:
                part.unlink(missing_ok=True)


def delete_all(folder: Path) -> None:
    """Delete all checkpoints of a run, those set aside too, and the index.

    Raises:
        OSError: something cannot be deleted.
    """
    for path in folder.iterdir():
        if path.name == INDEX_FILE or (
            _NAME_OR_REST.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ):
            files.remove(path)
    with suppress(OSError):  # a link, or something of the user's is in it
        folder.rmdir()
