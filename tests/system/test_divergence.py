"""Runs with gradients that are not finite, and with spikes, do what `train.on_divergence` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.commands import REPOSITORY, Finished
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, checkpoints, losses, records

QUICK = (
    *TINY[:2],
    "train.tensorboard=false",
    *NO_VALIDATION,
    "model.dropout=0",
    "train.log_every=1",
)
ZERO = {
    stage: f"train.deepspeed={REPOSITORY}/configs/ds_config/zero{stage}.json" for stage in (1, 2)
}
LAYOUTS: dict[str, tuple[str, ...]] = {
    "dense fp32 0": ("train.deepspeed=null",),
    "dense bf16 1": (ZERO[1], "train.precision=bf16"),
    "dense fp16 2": (ZERO[2], "train.precision=fp16"),
    "experts fp32 1": (ZERO[1],),
    "experts bf16 2": (ZERO[2], "train.precision=bf16"),
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


QUICK_ONES = ("dense fp16 2", "experts fp32 1")


@pytest.mark.parametrize(
    "layout",
    [n if n in QUICK_ONES else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS],
)
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
