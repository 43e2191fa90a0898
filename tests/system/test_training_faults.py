"""A training that is killed before any of its file operations resumes, and ends as it would have.

This covers all files of a run folder: the config and its history, the vocabulary, the log, the
figures, the checkpoints and their index.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from ds_seq import errors
from ds_seq import train as train_command
from ds_seq.weights.meta import read_index
from tests.faults import kills
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses, records

UPDATES = 3
SETTINGS = (
    *(*TINY, *NO_VALIDATION, "train.log_every=1", "train.save_every=2", "train.keep_last=1"),
    f"train.max_updates={UPDATES}",
)
KEPT = ("config.yaml", "history.json", "deepspeed.json", "checkpoints/index.json")


def _unlisted(run: Path) -> list[str]:
    """Checkpoints that are not in the index: one that should have been deleted, after a kill.

    It is kept, because nobody knows then whether it is wanted.
    """
    listed = {entry["name"] for entry in read_index(run / "checkpoints")["last"]}
    names = {path.name for path in run.glob("checkpoints/update_*")}
    return [f"checkpoints/{name}" for name in sorted(names - listed)]


def _contents(run: Path) -> dict[str, bytes]:
    """What has to be the same, byte for byte."""
    weights = sorted(run.glob("checkpoints/update_*/*.safetensors"))
    paths = [run / name for name in KEPT] + weights
    contents = {str(path.relative_to(run)): path.read_bytes() for path in paths}
    return {name: contents[name] for name in contents if not name.startswith(_ignored(run))}


def _names(run: Path) -> set[str]:
    """All files, except the figures of updates that were run again, which are kept."""
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    return {name for name in names if not name.startswith(_ignored(run))}


def _ignored(run: Path) -> tuple[str, ...]:
    return ("metrics.jsonl.old", *_unlisted(run))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "moments", [(12, 40), pytest.param(range(0, 1000, 4), marks=pytest.mark.slow)]
)
def test_a_training_that_is_killed_anywhere_ends_with_the_same_files(
    lab: Lab, tmp_path: Path, moments: Iterable[int]
) -> None:
    run = tmp_path / "run"
    arguments = (str(lab.dense), *SETTINGS, f"run_dir={run}", "--resume")
    train(*arguments)[0].check()
    expected, names, figures = _contents(run), _names(run), losses(run)
    assert list(figures) == list(range(1, UPDATES + 1))
    shutil.rmtree(run)

    def work() -> None:
        assert errors.run_command(train_command.main, list(arguments)) == 0

    for operations in kills(work, moments):
        train(*arguments)[0].check()
        assert _contents(run) == expected, operations
        assert _names(run) == names, f"{operations}: nothing is left of the kill"
        assert losses(run) == figures, operations
        assert len(records(run)) == UPDATES, f"{operations}: each update has one line"
        assert len(_unlisted(run)) <= 1, operations
        shutil.rmtree(run)
