"""What train_throughput.py measures: one text, one model, one list of batches, said to each
system."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.dataset import ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.data.vocab import Vocab
from ds_seq.prepare import prepare

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


def fetch_text(cache: Path, tsv: Path | None) -> Path:
    """Returns the folder of the text, which is fetched unless the cache has it.

    Args:
        cache: where texts are kept.
        tsv: source and target a line to take instead.
    """
    folder = cache / ("throughput" if tsv is None else f"throughput-{tsv.name.partition('.')[0]}")
    if not (folder / "raw" / "train.de").exists():
        script = Path(__file__).resolve().parent.parent / "prepare_data" / "fetch_sample.py"
        source = [] if tsv is None else ["--tsv", str(tsv)]
        command = [sys.executable, str(script), "--out", str(folder / "raw"), *source]
        subprocess.run(command, check=True)
    return folder


def experiment(text: Path, run_dir: Path, max_tokens: int, moe: bool) -> ExperimentConfig:
    """Returns the experiment of one of our two systems.

    Args:
        text: from `fetch_text`.
        run_dir: where the run's files go.
        max_tokens: of a batch.
        moe: with experts, or dense.
    """
    cross_entropy = {"name": "cross_entropy", "label_smoothing": LABEL_SMOOTHING}
    gate_losses = {"load_balance": 0.01, "router_z": 0.001}
    raw = {"source": str(text / "raw" / "train.en"), "target": str(text / "raw" / "train.de")}
    return ExperimentConfig.model_validate(
        {
            "name": "throughput",
            "run_dir": str(run_dir),
            "data": {
                "source_lang": "en",
                "target_lang": "de",
                "dir": str(text),
                "raw": {"train": raw},
                "vocab": {"size": VOCAB_SIZE},
            },
            "model": {**MODEL, "moe": EXPERTS} if moe else MODEL,
            "criterion": {
                "name": "model_and_base",
                "base": cross_entropy,
                "loss_weights": gate_losses,
            }
            if moe
            else cross_entropy,
            "optimizer": OPTIMIZER,
            "scheduler": {"name": "inverse_sqrt", "warmup_updates": WARMUP_UPDATES},
            "train": {
                "max_tokens": max_tokens,
                "seed": SEED,
                "validate_every": None,
                "save_every": 10**9,
                "valid_bleu": False,
                "best_metric": "loss",
                "sanity_validation_batches": 0,
                "tensorboard": False,
            },
        }
    )


def write_experiment(config: ExperimentConfig, path: Path) -> Path:
    """Prepares the experiment's data, unless that is done, and writes its file."""
    prepare(config)
    path.write_text(dump(config), encoding="utf-8")
    return path


def write_fairseq_setup(
    config: ExperimentConfig, path: Path, num_updates: int, threads: int
) -> Path:
    """Writes the dense experiment for fairseq, with the batches that ours will take.

    Args:
        config: the dense experiment, its data prepared.
        path: the file to write; the batches go beside it.
        num_updates: how many batches.
        threads: that fairseq may use.
    """
    batches = path.with_suffix(".npz")
    vocab_size = _write_batches(config, batches, num_updates)
    setup: dict[str, Any] = {
        "batches": str(batches),
        "vocab_size": vocab_size,
        "threads": threads,
        "layers": MODEL["encoder_layers"],
        "d_model": MODEL["d_model"],
        "ffn_dim": MODEL["ffn_dim"],
        "num_heads": MODEL["num_heads"],
        "dropout": MODEL["dropout"],
        "label_smoothing": LABEL_SMOOTHING,
        "lr": OPTIMIZER["lr"],
        "warmup_updates": WARMUP_UPDATES,
        "max_tokens": config.train.max_tokens,
        "seed": SEED,
    }
    path.write_text(json.dumps(setup), encoding="utf-8")
    return path


def _write_batches(config: ExperimentConfig, path: Path, num_updates: int) -> int:
    """Writes sentences and batches as plain arrays; returns the size of the vocabulary."""
    folder = Path(config.data.dir)
    vocab = Vocab.load(folder / "vocab.model")
    reader = ShardReader(folder, "train", vocab.hash)
    dataset = ParallelDataset(reader, config.data.max_source_length, config.data.max_target_length)
    sampler = TokenBatchSampler(
        dataset.src_lengths, dataset.tgt_lengths, config.train.max_tokens, seed=config.train.seed
    )
    epochs = chain.from_iterable(sampler.epoch(number) for number in count(1))
    batches = list(islice(epochs, num_updates))
    source, target = reader.gather(dataset.rows)
    np.savez(
        path,
        src_tokens=source.tokens,
        src_offsets=_offsets(source.lengths),
        tgt_tokens=target.tokens,
        tgt_offsets=_offsets(target.lengths),
        batch_indices=np.concatenate(batches),
        batch_offsets=_offsets([len(batch) for batch in batches]),
    )
    return len(vocab)


def _offsets(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
