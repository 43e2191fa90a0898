#!/usr/bin/env python3
"""Training speed of ds_seq, dense and with experts, against fairseq, on the same batches.

Three processes train the same architecture on the same batches and take turns: some updates of one,
the same updates of the next, and so on for several rounds, so that whatever else the machine does
hits all alike. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import Goal, Spread, add_common_arguments, finish, table, versions
from fairseq_venv import make_fairseq_venv
from worker import Block, Worker

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.shards import ShardReader
from ds_seq.data.vocab import Vocab
from ds_seq.prepare import prepare

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "ds_seq"
DENSE, MOE, FAIRSEQ = "ds_seq dense", "ds_seq MoE x8 top-1", "fairseq"
VOCAB_SIZE = 8000
MODEL = {
    "d_model": 256,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "num_heads": 4,
    "ffn_dim": 1024,
    "activation": "relu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "norm_position": "post",
    "positions": "sinusoidal",
    "share_embeddings": "all",
}
EXPERTS = {"num_experts": 8, "top_k": 1, "placement": "both", "every": 2}
LABEL_SMOOTHING = 0.1
OPTIMIZER = {"name": "adam", "lr": 5e-4, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.0}
WARMUP_UPDATES = 4000
SEED = 1


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    updates: int
    """Updates of each system in each round."""
    warmup: int
    """Updates of each system before the first round, not counted."""


def main(argv: Sequence[str]) -> int:
    """Measures, prints, records; returns the exit status."""
    arguments = parse(argv)
    python = make_fairseq_venv(arguments.cache / "fairseq-venv")
    data = make_data(arguments.cache, arguments.tsv)
    plan = Plan(3, 5, 2) if arguments.quick else Plan(arguments.rounds, arguments.updates, 4)
    with tempfile.TemporaryDirectory(prefix="ds_seq_bench_") as folder:
        setup = write_fairseq_setup(Path(folder), data, arguments, plan.total_updates)
        commands = {FAIRSEQ: [str(python), str(HERE / "fairseq_side.py"), str(setup)]}
        for name in (DENSE, MOE):
            path = write_experiment(Path(folder), data, arguments, name)
            commands[name] = [sys.executable, str(HERE / "ds_seq_side.py"), str(path)]
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(start(name, command, Path(folder), arguments.threads))
                for name, command in commands.items()
            ]
            rounds = measure(workers, plan)
    return report(workers, rounds, plan, arguments)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--threads", type=int, default=2, help="of each system")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of a batch, padding included")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=8, help="of each system in each round")
    parser.add_argument(
        "--tsv", type=Path, metavar="FILE", help="source<TAB>target lines instead of fetched text"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="for text, vocabulary and fairseq")
    return parser.parse_args(argv)


def make_data(cache: Path, tsv: Path | None) -> ExperimentConfig:
    """Fetches text and prepares shards, unless the cache has them; returns the data's config."""
    name = "sample" if tsv is None else tsv.name.partition(".")[0]
    folder = cache / f"bench-{name}-{VOCAB_SIZE}"
    raw = folder / "raw"
    if not (raw / "train.de").exists():
        fetch = [sys.executable, str(HERE.parent / "prepare_data" / "fetch_sample.py")]
        source = [] if tsv is None else ["--tsv", str(tsv)]
        subprocess.run([*fetch, "--out", str(raw), *source], check=True)
    config = ExperimentConfig.model_validate(experiment(folder, argparse.Namespace(max_tokens=4096), DENSE))
    prepare(config)
    return config


def experiment(folder: Path, arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Returns the experiment of one of our two systems."""
    cross_entropy = {"name": "cross_entropy", "label_smoothing": LABEL_SMOOTHING}
    dense = name == DENSE
    return {
        "name": "dense" if dense else "moe",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(folder),
            "raw": {
                "train": {"source": str(folder / "raw/train.en"), "target": str(folder / "raw/train.de")}
            },
            "vocab": {"size": VOCAB_SIZE},
        },
        "model": MODEL if dense else {**MODEL, "moe": EXPERTS},
        "criterion": cross_entropy
        if dense
        else {
            "name": "model_and_base",
            "base": cross_entropy,
            "loss_weights": {"load_balance": 0.01, "router_z": 0.001},
        },
        "optimizer": OPTIMIZER,
        "scheduler": {"name": "inverse_sqrt", "warmup_updates": WARMUP_UPDATES},
        "train": {
            "max_tokens": arguments.max_tokens,
            "seed": SEED,
            "validate_every": None,
            "save_every": 10**9,
            "sanity_validation_batches": 0,
            "valid_bleu": False,
            "best_metric": "loss",
            "tensorboard": False,
        },
    }
