"""A training on a mix, with stages and changes on the fly, stopped and resumed on other ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.cli import main
from ds_seq.config.load import load_experiment
from tests.data.toy import write_toy
from tests.distributed.harness import run_distributed

UPDATES = {"first": 5, "rest": 9}
"""A stop in the middle of the second stage; the third begins behind it, by a metric."""


def _experiment(folder: Path) -> Path:
    corpora: dict[str, Any] = {}
    for seed, (name, size) in enumerate((("web", 120), ("back", 60)), 1):
        write_toy(folder / name, size, 10, seed)
        corpora[name] = {side: str(folder / name / f"train.{code}") for side, code in CODES.items()}
    corpora["back"]["tag"] = "<bt>"
    content = {
        "name": "mixed",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(folder / "data"),
            "corpora": corpora,
            "raw": {"valid": {s: str(folder / "web" / f"valid.{c}") for s, c in CODES.items()}},
            "mixing": {
                "temperature": 5.0,
                "stages": [
                    {"corpora": ["web"], "until": {"updates": 3}},
                    {"until": {"metric": "loss", "validations": 1}},
                    {"shares": {"back": 1}},
                ],
            },
            "modify": {"subword_alpha": 0.2, "token_drop": 0.05},
            "vocab": {"size": 130, "user_symbols": ["<bt>"]},
        },
        "model": {
            "d_model": 16, "ffn_dim": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
            "dropout": 0.0,
        },
        # a rate at which the loss soon rises, which ends the second stage
        "optimizer": {"name": "adam", "lr": 0.5},
        "scheduler": {"name": "constant", "warmup_updates": 0},
        "train": {
            "max_tokens": 500, "batches_per_update": 3, "log_every": 1, "validate_every": 2,
            "save_every": 1, "keep_last": 99, "sanity_validation_batches": 0, "tensorboard": False,
        },
        "validation": {"metrics": [], "best": "loss"},
    }  # fmt: skip
    path = folder / "mixed.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["prepare", str(path)]) == 0
    return path


CODES = {"source": "en", "target": "de"}


def _train(path: Path, run: Path, updates: int, resume: bool) -> list[tuple[float, float]]:
    """Tokens and loss of each update of a training."""
    from ds_seq.training.run import run_training

    overrides = [f"run_dir={run}", f"train.max_updates={updates}"]
    run_training(lambda: load_experiment(path, overrides), resume=resume)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["tokens"], line["loss"]) for line in lines if line["kind"] == "train"]


def test_a_mix_goes_on_with_the_same_pairs_on_another_number_of_ranks(tmp_path: Path) -> None:
    path = _experiment(tmp_path)
    (whole,) = run_distributed(_train, 1, path, tmp_path / "one", UPDATES["rest"], False)
    run = tmp_path / "two"
    first = run_distributed(_train, 2, path, run, UPDATES["first"], False)[0]
    state = json.loads((run / "checkpoints" / "update_00000005" / "checkpoint.json").read_text())
    segments = state["progress"]["batches"]["mix"]["segments"]
    assert [segment["stage"] for segment in segments] == [0, 1]
    (resumed,) = run_distributed(_train, 1, path, run, UPDATES["rest"], True)
    assert first == resumed[: UPDATES["first"]]
    assert [tokens for tokens, _ in resumed] == [tokens for tokens, _ in whole]
    for (_, loss), (_, expected) in zip(resumed, whole, strict=True):
        assert loss == pytest.approx(expected, rel=1e-4)
    text = (run / "train.log").read_text()
    assert "stage 2 ends: loss was better before" in text or "stage 3" in text
