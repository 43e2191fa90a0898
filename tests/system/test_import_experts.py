"""Imported models with experts train with expert parallelism, and resume at another layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ds_seq import cli
from tests.system.forked import command, train
from tests.system.runs import losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
FOLDERS = ROOT / "tests" / "data" / "huggingface"
LANGUAGES = ["--source-lang", "en", "--target-lang", "de"]
CODES = {"nllb_moe": ["--source-code", "eng_Latn", "--target-code", "deu_Latn"], "switch": []}


@pytest.mark.parametrize("kind", CODES)
def test_an_import_trains_with_distributed_experts(kind: str, tmp_path: Path) -> None:
    start, folder = tmp_path / "start", FOLDERS / kind
    words = [*LANGUAGES, *CODES[kind], "--no-compare", "--link", "--out", str(start)]
    assert cli.main(["import", "huggingface", str(folder), *words]) == 0
    file = _experiment(start, folder, tmp_path)
    assert cli.main(["prepare", str(file)]) == 0

    def run(name: str, updates: int, ranks: int, *more: str) -> Path:
        # the same 2 batches per update in both layouts
        layout = [f"train.expert_parallel={ranks}", f"train.accumulate={2 // ranks}"]
        place = tmp_path / name
        options = [f"train.max_updates={updates}", f"run_dir={place}", *layout, *more]
        for done in train(file, *options, ranks=ranks):
            assert done.code == 0, done.err
        return place

    whole = run("whole", 6, 2)
    assert losses(whole)[6] < losses(whole)[1]
    run("moved", 3, 2)
    moved = run("moved", 6, 1, "--resume")
    after = {update: loss for update, loss in losses(moved).items() if update > 3}
    assert after == pytest.approx({update: losses(whole)[update] for update in after}, rel=1e-4)
    assert sorted(after) == [4, 5, 6]
    # the linked start itself, with its experts on two ranks
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    text, out = tmp_path / "lines", tmp_path / "answers"
    text.write_text("\n".join(expected["lines"]) + "\n", encoding="utf-8")
    limits = ["--beam", "4", "--max-len-a", "0", "--max-len-b", "38", "--length-penalty", "1"]
    files = ["--input", str(text), "--output", str(out), "--expert-parallel", "2"]
    for done in command("generate", start, *files, *limits, ranks=2):
        assert done.code == 0, done.err
    found = out.read_text(encoding="utf-8").splitlines()
    pairs = zip(found, expected["answers"]["4"], strict=True)
    assert all(ours == theirs for ours, theirs in pairs if theirs is not None)


def _experiment(start: Path, folder: Path, tmp_path: Path) -> Path:
    """An experiment that continues a linked run, without chance and without dropped tokens."""
    config = yaml.safe_load((start / "config.yaml").read_text(encoding="utf-8"))
    lines = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["lines"] * 4
    raw = {}
    for split in ("train", "valid"):
        raw[split] = {}
        for side, text in (("source", lines), ("target", lines[::-1])):
            path = tmp_path / f"{split}.{side}"
            path.write_text("\n".join(text) + "\n", encoding="utf-8")
            raw[split][side] = str(path)
    lengths = {"max_source_length": 64, "max_target_length": 64}
    data = {**config["data"], **lengths, "dir": str(tmp_path / "data"), "raw": raw}
    model = {**config["model"], "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    model["moe"] |= {"capacity_factor": None, "noise": "none"}
    deepspeed = str(ROOT / "configs" / "ds_config" / "zero2.json")
    settings = {
        "name": "continued",
        "data": {**data, "clean": {"drop_duplicates": False, "drop_identical": False}},
        "model": model,
        "criterion": config["criterion"],
        "optimizer": {"name": "adamw", "lr": 0.003},
        "scheduler": {"name": "constant", "warmup_updates": 1},
        "train": {
            "deepspeed": deepspeed, "init_from": str(start), "max_tokens": 400, "log_every": 1,
            "save_every": 3, "validate_every": None, "tensorboard": False,
        },
        "validation": {"metrics": [], "best": "loss"},
    }  # fmt: skip
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file
