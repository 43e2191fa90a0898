"""`ds-seq train --profile`: traces of real updates."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ds_seq.config.train import TrainConfig
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab


def test_every_rank_writes_a_trace_of_the_updates(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (*TINY, *NO_VALIDATION, "train.max_updates=3", f"run_dir={run}")
    finished = train(lab.moe, *settings, "--profile", "2:9", ranks=2)
    assert "updates 2 to 3 were profiled" in finished[0].check().err  # the run is shorter
    folder = run / "profile" / "updates_2-3"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"rank_{rank}.{suffix}" for rank in range(2) for suffix in ("json.gz", "txt")
    ]
    for rank in range(2):
        table = (folder / f"rank_{rank}.txt").read_text()
        assert "aten::mm" in table and len(table.splitlines()) < 60
        with gzip.open(folder / f"rank_{rank}.json.gz") as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert "aten::mm" in names


def test_the_updates_are_checked() -> None:
    assert TrainConfig(profile="5:5").profiled_updates == (5, 5)
    assert TrainConfig().profiled_updates is None
    for value, words in {
        "5": "should be FROM:TO",
        "9:5": "FROM first",
        "1:99": "at most 20",
    }.items():
        with pytest.raises(ValueError, match=words):
            TrainConfig(profile=value)
