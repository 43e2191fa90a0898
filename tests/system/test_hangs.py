"""Every command that runs in several ranks ends when one of them stops; none ends for long work."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ds_seq import activity, cli
from ds_seq.errors import EXIT_RANK_LOST
from ds_seq.files import heartbeats
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.update import UpdateRunner
from ds_seq.training.validation import Validator
from tests.distributed.killable import Ranks, ranks
from tests.system.forked import train
from tests.system.runs import TINY, Lab, checkpoints

LIMIT, SLACK = 3.0, 5.0
ENDLESS = (*TINY, "train.max_updates=1000000", f"train.hang_seconds={LIMIT}")
# what the ranks are at when one is stopped
PHASES = {
    "train": {"training"},
    "validation": {"validation", "scoring"},
    "generate": {"translation"},
    "teacher-cache": {"teacher"},
    "pseudo-label": {"translation"},
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in PHASES if name != "generate"]


def _arguments(command: str, lab: Lab, run: Path, folder: Path) -> list[str]:
    if command in ("train", "validation"):
        often = "train.validate_every=" + ("1" if command == "validation" else "null")
        search = ("generation.beam=10", "validation.max_sentences=100")
        more = (often, "train.save_every=1000000", *search, f"run_dir={folder / 'run'}")
        return ["train", str(lab.dense), *ENDLESS, *more]
    limit, data = f"--hang-seconds={LIMIT}", ["--data", str(lab.folder / "data")]
    out = ["--out", str(folder / "out"), limit]
    if command == "generate":
        text, output = str(lab.text("train.en")), str(folder / "out")
        small = ("--max-sentences=8", "--beam=8")
        return ["generate", str(run), "--input", text, "--output", output, limit, *small]
    if command == "teacher-cache":
        return [command, str(run), *data, *out, "--top-k=4", "--part-tokens=100"]
    return [command, str(run), *data, *out, "--beam=8", "--max-sentences=8"]


@contextmanager
def _started(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ranks]:
    (folder / "beats").mkdir()
    monkeypatch.setenv(heartbeats.FOLDER, str(folder / "beats"))
    with ranks(lambda: cli.main(arguments), 2, folder) as run:
        yield run


def _all_are_in(phases: set[str], folder: Path) -> Callable[[], bool]:
    def are_in() -> bool:
        beats = [json.loads(path.read_text()) for path in folder.glob("beats/beat.*.json")]
        return len(beats) == 2 and all(beat["phase"] in phases for beat in beats)

    return are_in


@pytest.mark.parametrize("command", ["generate", *SLOW])
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_ends_the_command(
    command: str,
    victim: int,
    lab: Lab,
    dense_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = _arguments(command, lab, dense_run, tmp_path)
    with _started(arguments, tmp_path, monkeypatch) as run:
        run.wait_until(_all_are_in(PHASES[command], tmp_path))
        run.send(victim, signal.SIGSTOP)
        [end] = run.wait([1 - victim], LIMIT + SLACK)
    assert end.code == EXIT_RANK_LOST, end.text
    assert "no sign of life" in end.text or "no progress" in end.text
    assert "last collective:" in end.text and "commands/" in end.text  # the stack of the command


def _slow(kind: type, name: str, once: int, sign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first `once` calls of a method take twice the limit, and leave a file as a sign."""
    original, calls = vars(kind)[name], []

    def method(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) <= once and os.environ["RANK"] == "0":
            time.sleep(2 * LIMIT)
            sign.touch()
        return original(*args, **kwargs)

    monkeypatch.setattr(kind, name, method)


# they wait; tests/distributed/test_watchdog.py has the same without a training
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(CheckpointStore, "start", marks=pytest.mark.slow),
        pytest.param(UpdateRunner, "__call__", marks=pytest.mark.slow),  # compiles in the first one
        pytest.param(Validator, "__call__", marks=pytest.mark.slow),  # before the first update
    ],
)
def test_long_work_of_one_rank_does_not_end_a_training(
    kind: type, name: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_slow = tmp_path / "was_slow"
    _slow(kind, name, 1, was_slow, monkeypatch)
    few = ("train.max_updates=2", "validation.metrics=[]", "validation.best=loss")
    arguments = [str(lab.dense), *ENDLESS, *few, f"run_dir={tmp_path}"]
    for rank in train(*arguments, ranks=2):
        rank.check()
    assert was_slow.exists()
    assert checkpoints(tmp_path) == [2]


@pytest.mark.slow  # waits; tests/distributed/test_watchdog.py has the same without a training
def test_an_update_that_takes_longer_than_the_limit_ends_the_training(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as above, but not the first one: what follows it is known to be fast."""
    original = UpdateRunner.__call__

    def call(self: UpdateRunner, *args: Any, **kwargs: Any) -> Any:
        if activity.CURRENT.update == 2 and os.environ["RANK"] == "1":
            time.sleep(60)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(UpdateRunner, "__call__", call)
    often = ("train.validate_every=null", "train.save_every=1")
    arguments = ["train", str(lab.dense), *ENDLESS, *often]
    with _started([*arguments, f"run_dir={tmp_path / 'run'}"], tmp_path, monkeypatch) as run:
        first, second = run.wait([0, 1], 60.0)
    assert first.code == second.code == EXIT_RANK_LOST
    assert "no progress" in second.text and "rank 1: no progress" in first.text
    assert checkpoints(tmp_path / "run") == [1, 2]
