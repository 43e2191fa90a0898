"""Minimum risk training through the command: one answer for every layout, exact after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses, records

RISK = "{name: minimum_risk, candidates: 3, ce_weight: 0.5, metric: chrf}"
SETTINGS = (
    *TINY,
    *NO_VALIDATION,
    "model.dropout=0",
    "model.moe.capacity_factor=null",
    "train.max_tokens=500",
    "train.max_sentences=3",
    "train.log_every=1",
    "optimizer={name: sgd, lr: 0.1}",
    "data.max_target_length=20",
    f"criterion.base={RISK}",
)


def _zero(stage: int) -> str:
    return f"train.deepspeed={Path(__file__).parents[2]}/configs/ds_config/zero{stage}.json"


ONE_RANK = ("train.expert_parallel=1", "train.accumulate=2")


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of two updates in one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(lab.moe, *SETTINGS, *ONE_RANK, "train.max_updates=2", f"run_dir={run}")[0].check()
    first = records(run)[0]
    assert 0.0 < first["candidate_error"] <= 1.0
    routers = 0.01 * first["load_balance"] + 0.001 * first["router_z"]
    assert first["loss"] == pytest.approx(0.5 * (first["risk"] + first["ce"]) + routers, rel=1e-5)
    return losses(run)


@pytest.mark.parametrize(
    "stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2, 3))]
)
def test_layouts_and_a_resume_make_the_same_training(
    lab: Lab, tmp_path: Path, whole: dict[int, float], stage: int
) -> None:
    """Ranks that share experts or weights generate together, also where one has less to do."""
    run = tmp_path / "run"
    settings = (lab.moe, *SETTINGS, f"run_dir={run}")
    train(*settings, _zero(stage), "train.max_updates=1", ranks=2)[0].check()
    train(*settings, *ONE_RANK, _zero(1), "train.max_updates=2", "--resume")[0].check()
    found = losses(run)
    assert list(found) == list(whole) == [1, 2]
    for update, loss in whole.items():
        assert found[update] == pytest.approx(loss, rel=1e-4), f"update {update}"
