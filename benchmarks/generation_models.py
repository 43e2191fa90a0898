"""generation.py: the models: a small trained one, and a large one derived from it.

Translations of an untrained model have arbitrary lengths, and training a large one takes hours. The
large model computes the same function as the small one, so that it has the cost of its size and
translations of realistic length.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from experiments import Recipe, fetch_text, model_section, write_experiment
from widening import grow

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.runs.export import write_export
from ds_seq.runs.open import load_run

UPDATES = 800  # of the small model: enough for translations of realistic length
SMALL = model_section(layers=2, d_model=128, ffn_dim=512, dropout=0.1)
LAYERS, WIDTH, HEADS, INNER = 6, 512, 8, 2048  # of the large model
VOCAB_SIZE = 4000


def recipe(text: Path) -> Recipe:
    """Return the small model's experiment, given the folder of the text."""
    return Recipe(
        text=text,
        shards=text / "generation-shards",
        vocab_size=VOCAB_SIZE,
        model=SMALL,
        train={"max_tokens": 2048, "max_updates": UPDATES},
        optimizer={"name": "adam", "lr": 2e-3, "betas": [0.9, 0.98]},
        scheduler={"name": "inverse_sqrt", "warmup_updates": 200},
        splits=("train", "valid", "test"),
    )


def small_run(cache: Path, tsv: Path | None) -> Path:
    """Return the folder of the trained run, training it unless the cache has it."""
    text = fetch_text(cache, tsv)
    run_dir = text / "generation-run"
    if not (run_dir / "checkpoints" / "index.json").exists():
        path = text / "generation-run.yaml"
        write_experiment(recipe(text).experiment(run_dir), path)
        command = [sys.executable, "-m", "ds_seq", "train", str(path), "--overwrite"]
        subprocess.run(command, check=True)
    return run_dir


def large_run(small: Path) -> Path:
    """Return the folder of the large model, deriving it from the small one unless it exists."""
    out = small.with_name("generation-large")
    if not out.exists():
        run = load_run(small, "best")
        sizes = {"d_model": WIDTH, "ffn_dim": INNER, "num_heads": HEADS}
        layers = {"encoder_layers": LAYERS, "decoder_layers": LAYERS}
        # sinusoidal rows depend on the width, so the small model's are copied as learned rows
        model = run.model_config.model_dump() | sizes | layers | {"positions": "learned"}
        config = ExperimentConfig.model_validate(
            run.require_experiment().model_dump() | {"model": model}
        )
        large = (
            build_seq2seq(config.model, run.tokenizers.size, 1, 0, seed=1)
            .requires_grad_(False)
            .eval()
        )
        grow(run.model, large)
        write_export(large, config, run.tokenizers, out)
    return out
