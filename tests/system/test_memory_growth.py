"""The memory of a long training on a CPU."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.system.commands import ds_seq, started
from tests.system.runs import NO_VALIDATION, Lab, records

_SETTINGS = (
    *("model.d_model=64", "model.ffn_dim=256", "train.max_tokens=1000", "train.tensorboard=false"),
    *("train.log_every=5", "train.max_updates=170", *NO_VALIDATION),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_memory_stops_growing(lab: Lab, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    file = lab.dense if kind == "dense" else lab.moe

    def reached(update: int) -> bool:
        return (run / "metrics.jsonl").exists() and any(
            line["update"] >= update for line in records(run)
        )

    command = ds_seq("train", file, *_SETTINGS, f"run_dir={run}", "train.expert_parallel=1")
    with started(command) as training:
        resident = []
        for update in (40, 160):
            training.wait_until(lambda update=update: reached(update), 800)  # type: ignore[misc]
            resident.append(psutil.Process(training.pid).memory_info().rss)
    assert resident[1] <= 1.3 * resident[0]
