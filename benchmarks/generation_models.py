"""generation.py: the models: small trained ones, and larger ones derived from them.

Translations of an untrained model have arbitrary lengths, and training a large one takes hours. A
larger model computes the same function as a small one, so that it has the cost of its size and
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

UPDATES = 800  # of a small model: enough for translations of realistic length
SMALL_WIDTH, SMALLEST_WIDTH = 128, 64  # the latter for widths that the former does not divide
LARGE_WIDTH, LARGE_LAYERS = 512, 6
HEAD_WIDTH = 64
VOCAB_SIZE = 4000


def recipe(text: Path, width: int = SMALL_WIDTH) -> Recipe:
    """Return a small model's experiment, given the folder of the text."""
    return Recipe(
        text=text,
        shards=text / "generation-shards",
        vocab_size=VOCAB_SIZE,
        model=model_section(layers=2, d_model=width, ffn_dim=4 * width, dropout=0.1),
        train={"max_tokens": 2048, "max_updates": UPDATES},
        optimizer={"name": "adam", "lr": 2e-3, "betas": [0.9, 0.98]},
        scheduler={"name": "inverse_sqrt", "warmup_updates": 200},
        splits=("train", "valid", "test"),
    )


def small_run(cache: Path, tsv: Path | None, width: int = SMALL_WIDTH) -> Path:
    """Return the folder of a trained run, training it unless the cache has it."""
    text = fetch_text(cache, tsv)
    run_dir = text / ("generation-run" if width == SMALL_WIDTH else f"generation-run-{width}")
    if not (run_dir / "checkpoints" / "index.json").exists():
        path = run_dir.with_suffix(".yaml")
        write_experiment(recipe(text, width).experiment(run_dir), path)
        command = [sys.executable, "-m", "ds_seq", "train", str(path), "--overwrite"]
        subprocess.run(command, check=True)
    return run_dir


def widened_run(small: Path, width: int, layers: int) -> Path:
    """Return the folder of a larger model, deriving it from a small one unless it exists.

    Args:
        small: a small run, whose width divides `width`.
        width: width of the model.
        layers: layers of encoder and decoder each, at least those of the small run.
    """
    out = small.with_name(f"{small.name}-as-{layers}x{width}")
    if not out.exists():
        run = load_run(small, "best")
        sizes = {"d_model": width, "ffn_dim": 4 * width, "num_heads": width // HEAD_WIDTH}
        depth = {"encoder_layers": layers, "decoder_layers": layers}
        # sinusoidal rows depend on the width, so the small model's are copied as learned rows
        model = run.model_config.model_dump() | sizes | depth | {"positions": "learned"}
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


def large_run(small: Path) -> Path:
    """Return the folder of the large model, see `widened_run`."""
    return widened_run(small, LARGE_WIDTH, LARGE_LAYERS)
