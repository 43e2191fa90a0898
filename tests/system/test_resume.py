"""A run that was stopped resumes unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1", "train.save_every=7")
HALF, END = 7, 12  # an epoch has ten updates on one rank and five on two
DROPLESS = ("model.dropout=0", "model.moe.capacity_factor=null")


def _until(updates: int) -> str:
    return f"train.max_updates={updates}"


@pytest.mark.parametrize(("kind", "ranks"), [("dense", 1), ("moe", 2)])
def test_resuming_in_the_middle_of_an_epoch_is_exact(
    lab: Lab, tmp_path: Path, kind: str, ranks: int
) -> None:
    file = lab.folder / f"{kind}.yaml"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(file, *SETTINGS, _until(END), f"run_dir={whole}", ranks=ranks)[0].check()
    train(file, *SETTINGS, _until(HALF), f"run_dir={parts}", ranks=ranks)[0].check()
    again = train(file, *SETTINGS, _until(END), f"run_dir={parts}", "--resume", ranks=ranks)[0]
    assert f"resuming at update {HALF} of {END}" in again.check().err

    expected, ours = losses(whole), losses(parts)
    assert list(ours) == list(range(1, END + 1))
    for update, loss in expected.items():
        assert ours[update] == pytest.approx(loss, rel=1e-6), f"update {update}"
    epoch_of = {line["update"]: line["epoch"] for line in records(parts)}
    assert epoch_of[HALF] == epoch_of[HALF - 1], "the test means to stop within an epoch"
    assert epoch_of[END] > epoch_of[HALF], "the test means to cross the end of an epoch"


def test_resuming_on_fewer_ranks_is_the_same_run(lab: Lab, tmp_path: Path) -> None:
    settings = (*SETTINGS, *DROPLESS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(lab.moe, *settings, _until(END), f"run_dir={whole}", ranks=2)[0].check()
    train(lab.moe, *settings, _until(HALF), f"run_dir={parts}", ranks=2)[0].check()
    one_rank = ("train.expert_parallel=1", "train.accumulate=2", "--resume")
    train(lab.moe, *settings, _until(END), f"run_dir={parts}", *one_rank)[0].check()

    expected, ours = losses(whole), losses(parts)
    for update, loss in expected.items():
        assert ours[update] == pytest.approx(loss, rel=1e-4), f"update {update}"


def test_resume_starts_from_scratch_where_there_is_nothing_yet(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(lab.dense, *SETTINGS, _until(2), f"run_dir={run}", "--resume")[0].check()
    assert checkpoints(run) == [2]


def test_a_finished_run_resumes_to_nothing(lab: Lab, tmp_path: Path) -> None:
    arguments = (lab.dense, *SETTINGS, _until(2), f"run_dir={tmp_path / 'run'}")
    train(*arguments)[0].check()
    again = train(*arguments, "--resume")[0].check()
    assert "stopped at update 2 (max_updates)" in again.err
    assert list(losses(tmp_path / "run")) == [1, 2]


def test_overwrite_starts_anew(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (lab.dense, *SETTINGS, f"run_dir={run}")
    train(*arguments, _until(3))[0].check()
    train(*arguments, _until(2), "--overwrite")[0].check()
    assert checkpoints(run) == [2]
    assert len(records(run)) == 2
