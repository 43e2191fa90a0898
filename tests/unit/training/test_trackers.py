"""Trackers that are installed get the figures; others are refused in one line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.load import read_experiment
from ds_seq.errors import UserError
from ds_seq.training import trackers
from ds_seq.training.trackers import open_trackers, settings_of

FIGURES = {"train/loss": 2.5, "train/moe/layer0/load_cv": 0.1}


def test_one_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        open_trackers(["wandb"], tmp_path, "x", {})


def test_settings_are_those_that_are_no_defaults() -> None:
    base: dict[str, Any] = {"name": "x", "validation": {"metrics": [], "best": "loss"}}
    base["data"] = {"source_lang": "en", "target_lang": "de", "dir": "d"}
    settings = settings_of(read_experiment(base, ["model.d_model=64", "train.trackers=[mlflow]"]))
    assert settings["model.d_model"] == 64 and settings["train.trackers"] == "['mlflow']"
    assert "train.log_every" not in settings


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_keeps_them_in_the_run_folder(tmp_path: Path) -> None:
    (tracker,) = open_trackers(["mlflow"], tmp_path, "x", {"optimizer.lr": 0.1})
    tracker.record(FIGURES, 7)
    tracker.end(succeeded=True)
    (metric,) = tmp_path.glob("mlruns/*/*/metrics/train/loss")
    assert metric.read_text().split()[1:3] == ["2.5", "7"]
    (parameter,) = tmp_path.glob("mlruns/*/*/params/optimizer.lr")
    assert parameter.read_text() == "0.1"


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
def test_wandb_writes_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = open_trackers(["wandb"], tmp_path, "x", {"optimizer.lr": 0.1})
    tracker.record(FIGURES, 7)
    tracker.end(succeeded=True)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/loss" in file.read_bytes()
