"""A training goes on when memory runs out for a batch of one rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_seq.errors import EXIT_RANK_LOST
from tests.system.commands import Finished
from tests.system.forked import train
from tests.system.runs import NO_VALIDATION, TINY, Lab, losses, records

QUICK = (*TINY[:2], TINY[3], *NO_VALIDATION, "model.dropout=0", "train.log_every=1")
ALL = 10_000


def run(lab: Lab, folder: Path, room: int, *settings: str) -> list[Finished]:
    options = {"rank": 1, "room": room}
    content = {"name": "tests.system.poisoned:HungryLoss", "options": options}
    base = (*QUICK, f"criterion={json.dumps(content)}", f"run_dir={folder}")
    sizes = ("train.max_tokens=1000", "train.accumulate=2", "train.max_updates=6")
    return train(lab.dense, *base, *sizes, *settings, ranks=2)


@pytest.mark.slow
def test_batches_that_do_not_fit_are_split(lab: Lab, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(lab, whole, ALL)[0].check()
    first, _ = run(lab, parts, 60)
    first.check()
    expected = losses(whole)
    assert losses(parts) == pytest.approx(expected, rel=1e-4)
    found = records(parts, "out_of_memory")
    batches = [batch for record in found for batch in record["batches"]]
    assert {batch["rank"] for batch in batches} == {1}
    assert not any(batch["dropped"] for batch in batches)
    # once a size is known not to fit, it is not tried again
    sizes = [batch["size"] for batch in batches]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert records(parts)[-1]["out_of_memory"] == len(batches) > 0
    assert [line["skipped_updates"] for line in records(parts)] == [0] * 6
    assert "try train.max_tokens=" in first.err
    # what is known goes on with the run
    first, _ = run(lab, parts, 60, "train.max_updates=8", "--resume")
    first.check()
    assert "out of memory with" not in first.err.split("resuming at update 6")[1]


@pytest.mark.slow
def test_batches_that_do_not_fit_are_left_out(lab: Lab, tmp_path: Path) -> None:
    few = ("train.on_out_of_memory=skip", "train.max_updates=3")
    first, second = run(lab, tmp_path / "bounded", 60, *few, "train.max_skips=1")
    assert first.code == second.code == 2
    (line,) = (line for line in first.err.splitlines() if "error:" in line)
    assert "error: out of memory in update" in line and "lower train.max_tokens, which is" in line
    first, _ = run(lab, tmp_path / "skip", 60, *few)
    first.check()
    batches = [
        b for record in records(tmp_path / "skip", "out_of_memory") for b in record["batches"]
    ]
    assert batches and all(batch["dropped"] for batch in batches)


@pytest.mark.slow
def test_stop_ends_the_run_as_before(lab: Lab, tmp_path: Path) -> None:
    options = {"rank": 0, "room": 10}
    criterion = json.dumps({"name": "tests.system.poisoned:HungryLoss", "options": options})
    more = ("train.on_out_of_memory=stop", f"run_dir={tmp_path}")
    (failed,) = train(lab.dense, *QUICK, f"criterion={criterion}", *more)
    assert failed.code == 2
    assert failed.err.splitlines()[-1].startswith("ds-seq: error: out of memory in update 1 (")


def test_ranks_that_share_experts_end_and_say_so(lab: Lab, tmp_path: Path) -> None:
    options = {"rank": 1, "room": 10}
    criterion = json.dumps({"name": "tests.system.poisoned:HungryLoss", "options": options})
    more = (f"criterion={criterion}", f"run_dir={tmp_path}")
    waiting, failed = train(lab.moe, *QUICK, *more, ranks=2, timeout=60.0)
    assert (waiting.code, failed.code) == (EXIT_RANK_LOST, 2)
    (line,) = (line for line in failed.err.splitlines() if "error:" in line)
    assert "ds-seq: error: rank 1: out of memory in update 1 (" in line
    assert "because ranks that share experts wait for each other" in line
