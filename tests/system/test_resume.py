"""A run that was stopped resumes unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_seq import files
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


def test_a_damaged_checkpoint_is_left_out_and_another_can_be_chosen(
    lab: Lab, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = (lab.dense, *SETTINGS, "train.save_every=2", f"run_dir={run}")
    train(*arguments, _until(5))[0].check()
    expected = losses(run)
    newest = run / "checkpoints" / "update_00000005"
    content = bytearray((newest / "optimizer.0.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.0.safetensors").write_bytes(content)
    (run / "checkpoints" / "index.json").unlink()
    again = train(*arguments, _until(6), "--resume")[0].check().err
    assert "optimizer.0.safetensors: damaged" in again
    assert "update_00000005: kept as update_00000005.aside" in again
    assert f"resuming at update 4 of 6, from {run}/checkpoints/update_00000004" in again
    assert losses(run)[5] == pytest.approx(expected[5], rel=1e-6)

    refused = train(*arguments, "--resume", "--checkpoint", f"{newest}.aside")[0]
    assert refused.code == 2 and "optimizer.0.safetensors: damaged" in refused.err
    train(*arguments, _until(5), "--resume", "--checkpoint", "update_00000004")[0].check()
    assert list(losses(run)) == [1, 2, 3, 4, 5]
    names = {path.name.removeprefix("update_0000000") for path in run.glob("checkpoints/update_*")}
    assert names == {"4", "5", "5.aside", "6.aside"}


def test_two_trainings_never_share_a_run_folder(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with files.Lock(run / files.LOCK_FILE, run, ""):
        (run / "metrics.jsonl").write_text("")
        for option in ("--overwrite", "--resume"):
            other = train(lab.dense, *SETTINGS, f"run_dir={run}", option)[0]
            assert other.code == 2 and "run: another process is writing to it" in other.err
        assert sorted(path.name for path in run.iterdir()) == [".lock", "metrics.jsonl"]
