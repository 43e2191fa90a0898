"""The folder of a run's checkpoints: what a kill or a copy may leave of it, and how to go on.

Checkpoints are the folders `update_<number>` with a `checkpoint.json`. `index.json` only adds
which of them are kept as the last and as the best; without it, it is made again from the folders.
Folders, files and links with other names belong to the user.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ds_seq import distributed, files
from ds_seq.errors import UserError
from ds_seq.runs.formats.ds_seq import find_checkpoint
from ds_seq.weights.source import (
    CHECKPOINTS,
    INDEX_FILE,
    META_FILE,
    TensorFolder,
    check_checkpoint,
    read_meta,
)

INCOMPLETE, REPLACED, ASIDE = ".incomplete", ".replaced", ".aside"
LISTS = ("last", "best")
SCORE_KEY, FIGURE_KEY = "score", "best_by"  # in META_FILE; older checkpoints have neither

_NAME = re.compile(r"update_(\d{8,})")
_NAME_OR_REST = re.compile(rf"{_NAME.pattern}({INCOMPLETE}|{REPLACED}|{ASIDE}\d*)?")
_NEEDED = ("optimizer", "loss_scaler", "progress")  # in META_FILE, to resume


def checkpoint_name(update: int) -> str:
    """Return the name of the checkpoint after `update` updates."""
    return f"update_{update:08d}"


def update_of(name: str) -> int:
    """Return the number of updates in the name of a checkpoint; -1 for any other name."""
    match = _NAME.fullmatch(name)
    return -1 if match is None else int(match[1])


def is_own(folder: Path) -> bool:
    """Return whether a training has made this folder as a checkpoint; a link is the user's."""
    return update_of(folder.name) >= 0 and folder.is_dir() and not folder.is_symlink()


def own_checkpoints(folder: Path) -> list[Path]:
    """Return the run's checkpoints, damaged ones too, the oldest first."""
    own = (path for path in folder.glob("update_*") if is_own(path))
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
        for path in folder.glob(f"update_*{INCOMPLETE}"):
            if _is_whole(path):  # its JSON file is written last: only the renaming is missing
                replace(path, path.with_name(path.name.removesuffix(INCOMPLETE)))
            else:
                files.remove(path)
        for path in folder.glob(f"update_*{REPLACED}"):
            final = path.with_name(path.name.removesuffix(REPLACED))
            if final.exists():
                files.remove(path)
            else:  # interrupted between the two renames of `replace`
                path.rename(final)


def _is_whole(folder: Path) -> bool:
    try:
        sizes = read_meta(folder)["files"]
    except UserError:
        return False
    return not any(files.check_file(folder / name, size, None) for name, size in sizes.items())


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


def _check(folder: Path) -> None:
    meta = read_meta(folder)
    if lost := [key for key in _NEEDED if not isinstance(meta.get(key), dict)]:
        raise UserError(f"{folder / META_FILE}: damaged (no {lost[0]}); use another checkpoint")
    check_checkpoint(folder, distributed.rank(), distributed.world_size())
    for kind in ("weights", "optimizer", "criterion"):
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
        while new.exists():
            number += 1
            new = path.with_name(f"{path.name}{ASIDE}{number}")
        with files.writing(path):
            path.rename(new)
        renamed.append((path.name, new.name))
    return renamed


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index; None if it is missing or damaged."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        scores = [float(entry["score"]) for entry in index["best"]]
        names = [entry["name"] for key in LISTS for entry in index[key]]
        if any(update_of(name) < 0 for name in names) or any(map(math.isnan, scores)):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return index


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
    index: dict[str, Any] = stored or {key: [] for key in LISTS}
    for key in LISTS:
        index[key] = [entry for entry in index[key] if entry["name"] in names]
    newest = max((update_of(entry["name"]) for entry in index["last"]), default=-1)
    new = [path for path in paths if update_of(path.name) > newest]
    for path in new if stored is not None else new[-keep_last:]:
        if stored is not None or path is paths[-1] or _score(path, figure)[0]:
            index["last"].append({"name": path.name, "score": _score(path, figure)[1]})
    known = {entry["name"] for entry in index["best"]}
    for path in new:
        score = _score(path, figure)[1]
        if score is not None and path.name not in known:
            index["best"].append({"name": path.name, "score": score})
    index["best"].sort(key=lambda entry: -sign * float(entry["score"]))
    return index


def _score(path: Path, figure: str | None) -> tuple[bool, float | None]:
    """Return whether a checkpoint records if it was validated, and its score by `figure`."""
    with suppress(UserError):
        meta = read_meta(path)
        same = figure is None or meta.get(FIGURE_KEY) in (None, figure)
        score = meta.get(SCORE_KEY)
        return SCORE_KEY in meta, score if same and isinstance(score, int | float) else None
    return False, None


def sweep(folder: Path, names: set[str]) -> None:
    """Delete checkpoints that the index no longer holds; never what a link points to."""
    for name in sorted(names):
        path = folder / name
        if is_own(path) and (path / META_FILE).is_file():
            with suppress(OSError):  # disk space is no reason to end a training
                files.remove_folder(path)


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
