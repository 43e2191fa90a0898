"""Runs with gradients that are not finite, and with spikes, do what `train.on_divergence` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.commands import REPOSITORY, Finished
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

QUICK = (*TINY[:2], TINY[3], *NO_VALIDATION, "model.dropout=0", "train.log_every=1")
JSON = f"train.deepspeed={REPOSITORY}/configs/ds_config"
ZERO = {stage: f"{JSON}/zero{stage}.json" for stage in (1, 2, 3)}
LAYOUTS: dict[str, tuple[str, ...]] = {
    "dense fp32 0": ("train.deepspeed=null",),
    "dense bf16 1": (ZERO[1], "train.precision=bf16"),
    "dense fp16 2": (ZERO[2], "train.precision=fp16"),
    "experts fp32 1": (ZERO[1],),
    "experts bf16 2": (ZERO[2], "train.precision=bf16"),
    "dense bf16 3": (ZERO[3], "train.precision=bf16"),
    "experts fp32 3": (ZERO[3],),
}


def poison(**options: Any) -> str:
    content = {"name": "tests.system.poisoned:PoisonedLoss", "options": options}
    return f"criterion={json.dumps(content)}"


def run(lab: Lab, folder: Path, *settings: str, layout: str = "dense fp32 0") -> list[Finished]:
    """What both ranks of a run of 8 updates left."""
    experiment = lab.moe if layout.startswith("experts") else lab.dense
    base = (*QUICK, *LAYOUTS[layout], "train.max_updates=8", f"run_dir={folder}")
    return train(experiment, *base, *settings, ranks=2)


def pairs_of(record: dict[str, Any]) -> list[tuple[int, list[int]]]:
    return [(batch["rank"], batch["pairs"]["train"]) for batch in record["batches"]]


def layouts(*quick: str) -> list[Any]:
    """All layouts; those that are not named are for the slow stage."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]


@pytest.mark.parametrize("layout", layouts("dense fp16 2"))
def test_stop_ends_the_run_with_a_code_of_its_own(lab: Lab, tmp_path: Path, layout: str) -> None:
    # a dynamic scale of 65,536 would come to its minimum only after the 16th skip
    fixed = tmp_path / "fixed.json"
    fixed.write_text('{"zero_optimization": {"stage": 2}, "fp16": {"loss_scale": 64}}')
    more = (f"train.deepspeed={fixed}",) if "fp16" in layout else ()
    first, second = run(lab, tmp_path / "run", poison(first=4), *more, layout=layout)
    assert first.code == second.code == 3
    assert "Traceback" not in first.err + second.err and "error:" not in second.err
    message = first.err.splitlines()[-1]
    assert "3 of the last 7 updates were skipped because gradients were not finite" in message
    assert "the state after update 7 is saved. To go on, " in message
    assert ("fp16.loss_scale (64)" in message) == ("fp16" in layout)
    assert checkpoints(tmp_path / "run") == [7]
    found = records(tmp_path / "run", "divergence")
    assert [record["update"] for record in found] == [5, 6, 7]
    assert {record["cause"] for record in found} == {"data or model"}
    assert found[0]["first"] == "the loss on rank 0: the outputs of the model are finite"
    assert found[0]["gradients"] and not found[0]["weights"]
    assert [rank for rank, _ in pairs_of(found[0])] == [0, 1]
    assert "update 5 | gradients were not finite, so the update was skipped" in first.err


BACK = ("train.on_divergence=back", "train.save_every=4", "train.return_lr_factor=0.5")


@pytest.mark.parametrize("layout", layouts())
def test_back_continues_from_the_checkpoint_without_the_bad_batches(
    lab: Lab, tmp_path: Path, layout: str
) -> None:
    fixed = tmp_path / "fixed.json"
    fixed.write_text('{"zero_optimization": {"stage": 2}, "fp16": {"loss_scale": 64}}')
    more = (*BACK, *((f"train.deepspeed={fixed}",) if "fp16" in layout else ()))
    good, bad, cut = (tmp_path / name for name in ("good", "bad", "cut"))
    run(lab, good, poison(), "train.max_updates=11", *more, layout=layout)[0].check()
    # updates 5 to 7 fail, each of them twice
    first, _ = run(lab, bad, poison(first=4, times=6), *more, layout=layout)
    first.check()
    assert "back to the checkpoint after update 4, without the batches since then" in first.err
    assert checkpoints(bad) == [4, 8]
    sizes, known = ([line["tokens"] for line in records(path)] for path in (bad, good))
    assert sizes == known[:4] + known[7:], "updates 5 to 8 have the batches after the bad ones"
    rates = [line["lr"] for line in records(bad)]
    assert rates[4:] == pytest.approx([line["lr"] / 2 for line in records(good)[4:8]])
    (entry,) = records(bad, "return")
    assert (entry["update"], entry["diverged_at"], entry["number"]) == (4, 7, 1)
    assert [record["update"] for record in records(bad, "divergence")] == [5, 6, 7]
    # the same, but the run ends after its return and resumes
    ended = run(lab, cut, poison(first=4, times=6, end=12), *more, layout=layout)
    assert ended[0].code != 0 and checkpoints(cut) == [0, 4]
    resumed, _ = run(lab, cut, poison(), *more, "--resume", layout=layout)
    resumed.check()
    assert "continuing without the batches of updates 5 to 7, which had diverged" in resumed.err
    assert losses(cut) == losses(bad)
    assert _weights(cut) == _weights(bad)


def _weights(folder: Path) -> dict[str, bytes]:
    files = (folder / "checkpoints" / "update_00000008").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in files}


def test_returns_are_bounded_and_need_a_checkpoint_of_the_start(lab: Lab, tmp_path: Path) -> None:
    more = ("train.on_divergence=back", "train.max_returns=2")
    first, second = run(lab, tmp_path, poison(first=0), *more)
    assert first.code == second.code == 3
    assert first.err.count("back to the checkpoint after update 0") == 2
    assert "3 of the last 3 updates were skipped" in first.err.splitlines()[-1]
    assert checkpoints(tmp_path) == [0, 3]


@pytest.mark.slow
def test_skip_goes_on_without_the_bad_batches(lab: Lab, tmp_path: Path) -> None:
    bad = poison(first=1, times=8)  # 4 updates on each rank, each of them run twice
    first, _ = run(lab, tmp_path, bad, "train.on_divergence=skip", "train.max_skips=4")
    first.check()
    assert [line["skipped_updates"] for line in records(tmp_path)] == [0, 1, 2, 3, 4, 4, 4, 4]
    assert checkpoints(tmp_path) == [8]
    # one more is too many, also for a run that resumes
    more = ("train.on_divergence=skip", "train.max_skips=4", "train.max_updates=12", "--resume")
    first, second = run(lab, tmp_path, poison(first=1), *more)
    assert first.code == second.code == 3
    assert "5 of the last 10 updates were skipped" in first.err
    assert checkpoints(tmp_path) == [8, 10]


def test_a_bad_result_that_does_not_come_again_is_blamed_on_the_hardware(
    lab: Lab, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    run(lab, good, poison())[0].check()
    first, _ = run(lab, bad, poison(first=2, times=1))
    first.check()
    assert losses(bad) == losses(good), "the update is the same when it is run again"
    (record,) = records(bad, "divergence")
    assert record["update"] == 3 and record["applied"] and record["cause"] == "hardware"
    assert "another result the second time on rank 0, 1: the hardware" in first.err
    assert [line["skipped_updates"] for line in records(bad)] == [0] * 8


@pytest.mark.slow
def test_spikes_are_recorded_with_their_pairs(lab: Lab, tmp_path: Path) -> None:
    more = ("train.max_updates=26", "optimizer.lr=1e-4")
    first, _ = run(lab, tmp_path, poison(first=22, times=1, factor=20.0), *more)
    first.check()
    norm, loss = records(tmp_path, "spike")
    assert (norm["update"], norm["figure"]) == (23, "gradient norm")
    assert (loss["update"], loss["figure"]) == (23, "loss")
    assert loss["value"] > 15 * loss["median"]
    assert sum(len(pairs) for _, pairs in pairs_of(loss)) == records(tmp_path)[22]["sentences"]
    assert "update 23 | spike: loss " in first.err
