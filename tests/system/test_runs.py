"""`ds-seq runs` tells how real trainings have ended."""

from __future__ import annotations

import json
from pathlib import Path

from tests.system.forked import command, kill_when, train
from tests.system.runs import NO_VALIDATION, TINY, Lab, records

SETTINGS = (*TINY, *NO_VALIDATION, "train.log_every=1")


def states(folder: Path) -> dict[str, tuple[str, int, str]]:
    found = json.loads(command("runs", folder, "--json")[0].check().out)
    return {run["name"]: (run["state"], run["update"], run["error"]) for run in found}


def test_the_end_of_each_training_is_known(lab: Lab, dense_run: Path, tmp_path: Path) -> None:
    name, killed = "train.max_updates=5", tmp_path / "killed"
    train(lab.dense, *SETTINGS, name, f"run_dir={tmp_path / 'done'}")[0].check()
    hot = ("optimizer.lr=1000", "optimizer.eps=1e-30", "scheduler.warmup_updates=1")
    diverged = train(lab.dense, *SETTINGS, *hot, f"run_dir={tmp_path / 'hot'}")[0]
    assert diverged.code == 3, diverged.err
    during: list[str] = []

    def is_running() -> bool:
        if (killed / "metrics.jsonl").exists() and len(records(killed)) >= 2:
            during.append(states(killed)["killed"][0])
        return bool(during)

    endless = ("train.max_updates=1000000", f"run_dir={killed}")
    kill_when(is_running, "train", lab.dense, *SETTINGS, *endless)
    found = states(tmp_path)
    assert found["done"] == ("finished", 5, "")
    assert found["hot"][0] == "diverged" and found["hot"][2] in diverged.err
    assert during == ["running"] and found["killed"][0] == "crashed"
    (best,) = json.loads(command("runs", dense_run, "--json")[0].check().out)
    assert best["best_by"] == "bleu"
    assert best["best_score"] == max(record["bleu"] for record in records(dense_run, "valid"))
