"""The same run under every launcher, and the end of a run that receives a signal to stop."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ds_seq import errors
from ds_seq import train as train_command
from tests.system.commands import (
    Running,
    deepspeed,
    ds_seq,
    mpirun,
    run,
    started,
    torchrun,
)
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1", "model.dropout=0", "train.max_tokens=500")
DROPLESS = "model.moe.capacity_factor=null"
UPDATES = "train.max_updates=3"
TIMEOUT = 60.0


def _arguments(lab: Lab, folder: Path, *more: str) -> list[str]:
    return [str(lab.moe), *SETTINGS, DROPLESS, f"run_dir={folder}", *more]


@pytest.fixture(scope="module")
def expected(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of one process that takes two batches for an update instead of two processes."""
    folder = tmp_path_factory.mktemp("alone")
    one = ("train.expert_parallel=1", "train.accumulate=2", UPDATES)
    train(*_arguments(lab, folder, *one))[0].check()
    return losses(folder)


def _assert_same(folder: Path, expected: dict[int, float]) -> None:
    found = losses(folder)
    for update, loss in expected.items():
        assert found[update] == pytest.approx(loss, rel=1e-4), f"update {update}"


def test_deepspeed(lab: Lab, tmp_path: Path, expected: dict[int, float]) -> None:
    run(deepspeed("train", *_arguments(lab, tmp_path, UPDATES)), TIMEOUT).check()
    _assert_same(tmp_path, expected)


@pytest.mark.mpirun
def test_mpirun(lab: Lab, tmp_path: Path, expected: dict[int, float]) -> None:
    run(mpirun("train", *_arguments(lab, tmp_path, UPDATES)), TIMEOUT).check()
    _assert_same(tmp_path, expected)


def _slurm(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What ``srun -n 2`` sets, as far as we look at it."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": str(world_size),
        "SLURM_NTASKS_PER_NODE": str(world_size),
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": str(port),  # not from srun: another test run may have the job's port
    }


def test_srun(lab: Lab, tmp_path: Path, expected: dict[int, float]) -> None:
    for rank in train(*_arguments(lab, tmp_path, UPDATES), ranks=2, launcher=_slurm):
        rank.check()
    _assert_same(tmp_path, expected)


class Interrupted:
    """A run that got SIGTERM after some updates."""

    def __init__(self, folder: Path, code: int, text: str) -> None:
        self.folder, self.code, self.text = folder, code, text

    def assert_saved(self) -> int:
        """It ended well and left a checkpoint of its last update, whose number is returned."""
        assert self.code == 0, self.text
        assert self.text.count("(signal)") == 1, self.text
        last = max(losses(self.folder))
        assert checkpoints(self.folder)[-1] == last
        assert not list(self.folder.glob("checkpoints/*.incomplete"))
        return last


def _interrupt(command: Sequence[str | Path], folder: Path, worker: int | None) -> Interrupted:
    """Start a long run, and send SIGTERM to it, or to a worker of the launcher, after 3 updates."""

    def three_updates() -> bool:
        return (folder / "metrics.jsonl").is_file() and len(records(folder)) >= 3

    with started(command) as running:
        running.wait_until(three_updates, TIMEOUT)
        os.kill(_target(running, worker), signal.SIGTERM)
        finished = running.wait(TIMEOUT)
    return Interrupted(folder, finished.code, finished.err)


def _target(running: Running, worker: int | None) -> int:
    return running.pid if worker is None else running.workers("train.py")[worker].pid


LONG = "train.max_updates=100000"


@pytest.fixture(scope="module")
def torchrun_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """A long run under torchrun, of which rank 1 alone got the signal."""
    folder = tmp_path_factory.mktemp("torchrun")
    return _interrupt(torchrun("train", *_arguments(lab, folder, LONG)), folder, worker=1)


def test_torchrun(torchrun_run: Interrupted, expected: dict[int, float]) -> None:
    _assert_same(torchrun_run.folder, expected)


def test_a_signal_to_one_rank_saves_on_all(torchrun_run: Interrupted, lab: Lab) -> None:
    last = torchrun_run.assert_saved()
    more = (f"train.max_updates={last + 2}", "--resume")
    train(*_arguments(lab, torchrun_run.folder, *more), ranks=2)[0].check()
    assert max(losses(torchrun_run.folder)) == last + 2


@pytest.fixture(scope="module")
def bare_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    """A long run without a launcher that got the signal."""
    folder = tmp_path_factory.mktemp("bare")
    arguments = [str(lab.dense), *SETTINGS, f"run_dir={folder}", LONG]
    yield _interrupt(ds_seq("train", *arguments), folder, worker=None)


def test_a_signal_saves_and_ends_a_run(bare_run: Interrupted, lab: Lab) -> None:
    last = bare_run.assert_saved()
    more = (f"run_dir={bare_run.folder}", f"train.max_updates={last + 2}", "--resume")
    train(lab.dense, *SETTINGS, *more)[0].check()
    assert list(losses(bare_run.folder)) == list(range(1, last + 3))


def _train_into(pipe: int, arguments: list[str]) -> None:
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # not pytest's
    sys.exit(errors.run_command(train_command.main, arguments))


def test_a_training_outlives_its_console(lab: Lab, tmp_path: Path) -> None:
    """Such as `| tee`, or a launcher that passed its output on."""
    reader, writer = os.pipe()
    arguments = [str(lab.dense), *SETTINGS, f"run_dir={tmp_path}", "train.max_updates=6"]
    context = mp.get_context("fork")
    process = context.Process(target=_train_into, args=(writer, arguments), daemon=True)
    process.start()
    os.close(writer)
    assert os.read(reader, 1)
    os.close(reader)
    process.join(TIMEOUT)
    assert process.exitcode == 0
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6] and checkpoints(tmp_path) == [6]
