"""The recipes for a CPU run from their first step to their last, with few updates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ds_seq.config.load import load_experiment
from ds_seq.config.shipped import experiments_folder, recipes
from tests.data.toy import toy_pairs, write_toy
from tests.system.commands import REPOSITORY

SMALL = [recipe.name for recipe in recipes() if "CPU" in recipe.hardware]
# those that need another one come after it
ORDER = sorted(
    SMALL, key=lambda name: name in ("tiny_student", "tiny_adapter", "finetune_denoised")
)
# a vocabulary for the generated text, and few updates
SETTINGS = (
    "data.vocab.size=300",
    "train.max_updates=6",
    "train.log_every=2",
    "scheduler.warmup_updates=2",
    "validation.max_sentences=8",
)


def write_texts(folder: Path) -> None:
    """Write what the recipes have in their `Text`."""
    write_toy(folder / "raw", train=6000, held_out=40)
    write_toy(folder / "data" / "domain" / "raw", train=300, held_out=20, seed=2)
    write_toy(folder / "synopsis", train=600, held_out=20)
    for name, split in {"train": "train", "valid": "val", "test": "test"}.items():
        for language, side in {"en": "source", "de": "target"}.items():
            path = folder / "data" / "synopsis" / "raw" / f"{split}.{side}"
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / "synopsis" / f"{name}.{language}").replace(path)
    corpora = load_experiment(experiments_folder() / "multilingual_help.yaml").data.corpora
    (folder / "data" / "help").mkdir()
    for seed, name in enumerate(corpora):
        rows = "".join(f"{source}\t{target}\n" for source, target in toy_pairs(200, seed))
        (folder / "data" / "help" / f"{name}.tsv").write_text(rows, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_small_recipes_run_to_the_end(tmp_path: Path) -> None:
    write_texts(tmp_path)
    script = str(REPOSITORY / "benchmarks" / "recipes.py")
    folders = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path)]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, script, *ORDER, *folders, *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ORDER:
        assert f"| {name} " in done.stdout
