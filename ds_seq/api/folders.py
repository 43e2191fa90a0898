"""Folders of runs and data: what is in them, and whether it is whole.

Imports no torch for a table of runs and their curves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ds_seq.config.shipped import Recipe, recipes
from ds_seq.reports.curves import RunCurves
from ds_seq.reports.curves import read_curves as curves_of
from ds_seq.reports.run_state import RunState, find_runs, read_state

if TYPE_CHECKING:
    from ds_seq.runs.verification import Finding


def list_runs(*folders: str | Path) -> list[RunState]:
    """Return the state of each run in, or below, some folders, like `ds-seq runs`.

    Args:
        *folders: run folders, or folders that hold some.

    Raises:
        UserError: a folder does not exist, or there is no run.
    """
    return [read_state(name, folder) for name, folder in find_runs(list(map(Path, folders)))]


def read_curves(*folders: str | Path) -> list[RunCurves]:
    """Return all figures of each run in, or below, some folders, like `ds-seq plot`.

    Args:
        *folders: run folders, or folders that hold some.

    Returns:
        For each run its figures, such as `loss` and `valid/bleu`, by update; `curve("loss",
        "tokens")` gives lists of x and y over `updates`, `tokens` or `hours`.

    Raises:
        UserError: a folder does not exist, there is no run, or one has no figures yet.
    """
    return [curves_of(name, folder) for name, folder in find_runs(list(map(Path, folders)))]


def list_recipes() -> list[Recipe]:
    """Return the experiments that come with ds_seq, like `ds-seq recipes ls`.

    Returns:
        For each its name, file (`path`, which `check`, `prepare` and `fit` take), expected score,
        hours, memory and hardware, and whether these were measured.

    Raises:
        ValueError: a file that comes with ds_seq has no such description.
    """
    return list(recipes())


def verify(path: str | Path) -> list[Finding]:
    """Check the files of a run, checkpoint, export, data folder or teacher cache.

    Args:
        path: folder or exported file.

    Returns:
        The outcome of each check, like the lines of `ds-seq verify`; damage is no error but a
        finding with `is_sound` False.

    Raises:
        UserError: there is nothing that could be checked.
    """
    from ds_seq.runs.verification import verify as check_files  # imports torch

    return list(check_files(Path(path)))
