"""The experiments of the benchmarks: their text, and the settings that systems share."""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_seq.commands.prepare import prepare
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump, load_experiment
from ds_seq.config.yaml_file import to_yaml

CACHE = Path.home() / ".cache" / "ds_seq"
NEVER = 10**9
ROUTER_LOSSES = {"load_balance": 0.01, "router_z": 0.001}


def fetch_text(cache: Path, tsv: Path | None) -> Path:
    """Return the folder of the text, fetching it unless it is in the cache.

    Args:
        cache: folder of cached texts.
        tsv: file with a source and a target per line, used instead.
    """
    folder = cache / ("throughput" if tsv is None else f"throughput-{_cache_name(tsv)}")
    if not (folder / "raw" / "train.de").exists():
        script = Path(__file__).resolve().parent.parent / "prepare_data" / "fetch_sample.py"
        source = [] if tsv is None else ["--tsv", str(tsv)]
        command = [sys.executable, str(script), "--out", str(folder / "raw"), *source]
        subprocess.run(command, check=True)
    return folder


def _cache_name(path: Path) -> str:
    """Return a name that files of other names or other folders do not have."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return f"{path.name.partition('.tsv')[0]}-{digest[:8]}"


def model_section(layers: int, d_model: int, ffn_dim: int, dropout: float) -> dict[str, Any]:
    """Section `model` of a dense pre-norm Transformer with equally deep stacks."""
    return {
        "d_model": d_model,
        "ffn_dim": ffn_dim,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "num_heads": max(d_model // 64, 1),
        "dropout": dropout,
        "norm_position": "pre",
    }


@dataclass(frozen=True)
class Recipe:
    """The part of an experiment that the compared systems share.

    Args:
        text: folder of the text, from `fetch_text`.
        shards: folder of vocabulary and shards; created if missing.
        vocab_size: number of subwords.
        model: section `model`, without experts.
        train: section `train`, added to settings without validation and checkpoints.
        optimizer: section `optimizer`.
        scheduler: section `scheduler`.
        splits: splits of the text to use.
        label_smoothing: label smoothing of the cross entropy.
        data: further keys of section `data`.
        generation: section `generation`.
        router_losses: weights of the router losses.
    """

    text: Path
    shards: Path
    vocab_size: int
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    splits: Sequence[str] = ("train",)
    label_smoothing: float = 0.1
    data: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    router_losses: Mapping[str, float | None] = field(default_factory=lambda: ROUTER_LOSSES)

    def experiment(self, run_dir: Path, moe: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the experiment of one system, as its file states it.

        Args:
            run_dir: run folder.
            moe: section `model.moe`; None for the dense model.
        """
        raw = {
            split: {side: str(self.text / "raw" / f"{split}.{lang}") for side, lang in _SIDES}
            for split in self.splits
        }
        cross_entropy: dict[str, Any] = {
            "name": "cross_entropy",
            "label_smoothing": self.label_smoothing,
        }
        with_gates = {"name": "model_and_base", "base": cross_entropy}
        silent = {
            "validate_every": None,
            "save_every": NEVER,
            "valid_bleu": False,
            "best_metric": "loss",
            "sanity_validation_batches": 0,
            "tensorboard": False,
        }
        model, criterion = dict(self.model), cross_entropy
        if moe is not None:
            model["moe"] = dict(moe)
            criterion = {**with_gates, "loss_weights": dict(self.router_losses)}
        return {
            "name": run_dir.name,
            "run_dir": str(run_dir),
            "data": {
                "source_lang": "en",
                "target_lang": "de",
                "dir": str(self.shards),
                "raw": raw,
                "vocab": {"size": self.vocab_size},
                **self.data,
            },
            "model": model,
            "criterion": criterion,
            "optimizer": dict(self.optimizer),
            "scheduler": dict(self.scheduler),
            "train": {**silent, **self.train},
            "generation": dict(self.generation),
        }


_SIDES = (("source", "en"), ("target", "de"))


def write_experiment(
    experiment: dict[str, Any], path: Path, overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """Write an experiment's file and prepare its data unless that is done.

    Args:
        experiment: from `Recipe.experiment`.
        path: path of the file.
        overrides: `key=value` overrides, as for `ds-seq train`.

    Returns:
        The loaded experiment.

    Raises:
        UserError: the experiment is invalid.
    """
    path.write_text(to_yaml(experiment), encoding="utf-8")
    config = load_experiment(path, overrides)
    if overrides:
        path.write_text(dump(config), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):  # its progress goes to stderr
        prepare(config)
    return config
