"""A source and a task from outside the package train, validate and resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.forked import train
from tests.system.runs import TINY, Lab, losses, records

HERE = "tests.system.outside"
REVERSED = f"data.source={{name: '{HERE}:reversed_words', options: {{pairs: 300}}}}"
COPY = f"task={{name: '{HERE}:CopyTask', options: {{lines: 200}}}}"
QUICK = ("model.dropout=0", "scheduler.warmup_updates=5", "optimizer.lr=1e-2", "train.log_every=1")


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_external_source_is_learned_from(lab: Lab, tmp_path: Path, ranks: int) -> None:
    by_loss = ("validation={metrics: [], best: loss}", "train.validate_every=10")
    more = (REVERSED, *QUICK, *by_loss, "train.max_tokens=300", f"run_dir={tmp_path}")
    first, *_ = train(lab.dense, *TINY, *more, "train.max_updates=30", ranks=ranks)
    assert "300 pairs" in first.check().err
    found = losses(tmp_path)
    assert found[30] < found[1] - 1.0
    valid = [line["loss"] for line in records(tmp_path, "valid")]
    assert len(valid) == 3 and valid[-1] < valid[0]


def test_ids_of_another_vocabulary_are_refused(lab: Lab, tmp_path: Path) -> None:
    wrong = REVERSED.replace("pairs: 300", "pairs: 9, wrong: true")
    (failed,) = train(lab.dense, *TINY, wrong, f"run_dir={tmp_path}")
    assert failed.code == 2
    assert f"data.source: {HERE}:reversed_words returned ids of vocabulary {'f' * 12}" in failed.err


def test_a_source_that_is_not_there_is_named(lab: Lab, tmp_path: Path) -> None:
    (failed,) = train(lab.dense, "data.source.name=no_lab:Text", f"run_dir={tmp_path}")
    assert failed.code == 2 and "data.source.name: cannot import 'no_lab'" in failed.err
    (failed,) = train(lab.dense, "data.source.name=shard", f"run_dir={tmp_path}")
    assert "data.source.name: no source 'shard' (did you mean 'shards'?)" in failed.err


def test_an_external_task_has_its_own_data_and_metric(lab: Lab, tmp_path: Path) -> None:
    chosen = ("validation={metrics: [misses], best: misses, max_sentences: 20}", COPY)
    more = (*chosen, *QUICK, "train.validate_every=5", "model.d_model=32")
    settings = (lab.dense, *TINY[1:], *more)
    whole, parted = (f"run_dir={tmp_path / name}" for name in ("whole", "parted"))
    done = train(*settings, whole, "train.max_updates=20")[0].check()
    assert "200 pairs" in done.err and "valid misses" in done.err
    train(*settings, parted, "train.max_updates=10")[0].check()
    train(*settings, parted, "train.max_updates=20", "--resume")[0].check()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parted")
    valid = records(tmp_path / "whole", "valid")
    assert [line["update"] for line in valid] == [5, 10, 15, 20]
    assert all("bleu" not in line and 0 <= line["misses"] <= 100 for line in valid)
    assert valid[-1]["loss"] < valid[0]["loss"]
    index = json.loads((tmp_path / "whole" / "checkpoints" / "index.json").read_text())
    assert index["best"][0]["score"] == min(line["misses"] for line in valid)


def test_a_task_refuses_metrics_that_it_has_not(lab: Lab, tmp_path: Path) -> None:
    (failed,) = train(lab.dense, *TINY, COPY, f"run_dir={tmp_path / 'run'}")
    assert failed.code == 2
    assert "validation.metrics: copying has `misses` alone, not 'bleu'" in failed.err
    assert not (tmp_path / "run").exists(), "told before anything is written"
