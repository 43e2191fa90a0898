"""Setup of train_throughput.py: one text, one model and one list of batches for all systems."""

from __future__ import annotations

import json
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from experiments import Recipe

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.data.batch import ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.shards import ShardReader
from ds_seq.text.sentencepiece import SentencePieceTokenizer

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


def recipe(text: Path, max_tokens: int) -> Recipe:
    """Return the settings shared by our two systems and fairseq.

    Args:
        text: folder of the text, from `fetch_text`.
        max_tokens: tokens per batch.
    """
    return Recipe(
        text=text,
        shards=text,
        vocab_size=VOCAB_SIZE,
        model=MODEL,
        train={"max_tokens": max_tokens, "seed": SEED},
        optimizer=OPTIMIZER,
        scheduler={"name": "inverse_sqrt", "warmup_updates": WARMUP_UPDATES},
        label_smoothing=LABEL_SMOOTHING,
    )


def write_fairseq_setup(
    config: ExperimentConfig, path: Path, num_updates: int, threads: int
) -> Path:
    """Write the dense experiment for fairseq, with the batches that ours will use.

    Args:
        config: the dense experiment, with prepared data.
        path: file to write; the batches are written next to it.
        num_updates: number of batches.
        threads: number of threads for fairseq.
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
    """Write sentences and batches as plain arrays; return the vocabulary size."""
    folder = Path(config.data.dir)
    vocab = SentencePieceTokenizer.load(folder / "vocab.model")
    reader = ShardReader(folder, "train", vocab.fingerprint)
    dataset = ParallelDataset(reader, config.data.max_source_length, config.data.max_target_length)
    sampler = TokenBatchSampler(
        dataset.lengths, config.train.max_tokens, seed=config.train.seed, accumulate=1
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
