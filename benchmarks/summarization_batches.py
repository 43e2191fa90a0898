#!/usr/bin/env python3
"""Batches of summarization: those of distilBART's fine-tuner and ours, padding and time per epoch.

    python benchmarks/summarization_batches.py --data data/synopsis

`--data` has shards that `ds-seq prepare` wrote. All ways have the same largest batch in padded
source tokens, which is what memory bounds. The peer's two samplers are written anew from their
description: "sortish" sorts random groups of 50 batches of a fixed number of pairs, and "dynamic"
cuts all pairs, sorted by length, to a number of tokens and to a multiple of 64 pairs. Time is
processor time of forward and backward on batches spread over all sizes, scaled to the epoch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import Goal, finish, table
from numpy.typing import NDArray

from ds_seq.config.load import load_experiment
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.data.batch import ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.shards import ShardReader
from ds_seq.data.truncation import TruncatedSource
from ds_seq.models import build_model
from ds_seq.text.build import load_tokenizers

EXPERIMENT = Path(__file__).parents[1] / "configs" / "experiments" / "summarize_synopsis.yaml"
Batches = list[NDArray[np.int64]]


def random_batches(lengths: NDArray[np.integer], size: int) -> Batches:
    """Cut pairs in random order to batches of `size`."""
    order = np.random.default_rng(1).permutation(len(lengths))
    return [order[start : start + size] for start in range(0, len(order), size)]


def sortish_of_peer(lengths: NDArray[np.integer], size: int) -> Batches:
    """Sort random groups of 50 batches by the length of the source; cut them to `size` pairs."""
    order = np.random.default_rng(1).permutation(len(lengths))
    groups = [order[start : start + 50 * size] for start in range(0, len(order), 50 * size)]
    ordered = np.concatenate([group[np.argsort(-lengths[group, 0])] for group in groups])
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def dynamic_of_peer(lengths: NDArray[np.integer], max_tokens: int, multiple: int = 64) -> Batches:
    """Cut pairs, sorted by length, by tokens, and to a multiple of pairs if there is one."""
    longest = lengths.max(axis=1)
    order = np.argsort(longest, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = 1
        while start + size < len(order) and (size + 1) * longest[order[start + size]] <= max_tokens:
            size += 1
        if size > multiple and start + size < len(order):
            size -= size % multiple
        batches.append(order[start : start + size])
        start += size
    return batches


def padded(lengths: NDArray[np.integer], batches: Batches) -> NDArray[np.int64]:
    """Return the padded tokens of each side of each batch, (number, 2)."""
    return np.array([lengths[batch].max(axis=0) * len(batch) for batch in batches])


def measure(systems: dict[str, Batches], step: Callable[[NDArray[np.int64]], None],
            lengths: NDArray[np.integer], sampled: int) -> dict[str, float]:  # fmt: skip
    """Return the processor seconds of an epoch by system, measured in turns."""
    chosen = {}
    for name, batches in systems.items():
        by_cost = np.argsort(padded(lengths, batches).sum(axis=1))
        places = (np.arange(sampled) + 0.5) / sampled * len(batches)
        chosen[name] = [batches[by_cost[int(place)]] for place in places]
    spent = dict.fromkeys(systems, 0.0)
    for batches in chosen.values():
        step(batches[-1])  # warm-up
    for number in range(sampled):
        for name, batches in chosen.items():
            started = time.process_time()
            step(batches[number])
            spent[name] += time.process_time() - started
    return {name: spent[name] * len(systems[name]) / sampled for name in systems}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--max-source-length", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=6144)
    parser.add_argument("--sampled", type=int, default=12, help="batches measured of each way")
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    parser.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    most, longest = arguments.max_tokens, arguments.max_source_length
    config = load_experiment(EXPERIMENT, [f"data.dir={arguments.data}"])
    tokenizers = load_tokenizers(config.data, arguments.data)
    source = ShardReader(arguments.data, "train", tokenizers.fingerprint)
    dataset = ParallelDataset(TruncatedSource(source, (longest, None)), longest, 64)
    lengths = np.asarray(dataset.lengths, np.int64)
    size = most // longest

    def ours(**options: object) -> Batches:
        return TokenBatchSampler(lengths, most, seed=1, accumulate=1, **options).epoch(1)

    systems = {
        f"random, {size} pairs": random_batches(lengths, size),
        f"peer's sortish, {size} pairs": sortish_of_peer(lengths, size),
        "peer's dynamic, multiples of 64": dynamic_of_peer(lengths, most),
        "ours, sorted": ours(),
        "ours, sortish": ours(is_sortish=True),
        "ours, sorted, multiples of 8": ours(multiple=8),
    }
    model = build_model(config.model, len(tokenizers.target), 1, 0, config.train.seed)
    criterion = CrossEntropy(0.1, "fairseq")

    def step(batch: NDArray[np.int64]) -> None:
        made = dataset.collate(batch, tokenizers.symbols)
        criterion(model(made.inputs), made).total.backward()
        model.zero_grad()

    seconds = measure(systems, step, lengths, 3 if arguments.quick else arguments.sampled)
    return finish("Batches of summarization", *report(systems, seconds, lengths), arguments.record)


def report(
    systems: dict[str, Batches], seconds: dict[str, float], lengths: NDArray[np.integer]
) -> tuple[str, Sequence[Goal]]:
    """Return the table and the goals."""
    real = lengths.sum(axis=0)
    rows, shares = [], {}
    for name, batches in systems.items():
        total = padded(lengths, batches)
        assert sum(map(len, batches)) == len(lengths)
        shares[name] = 1 - real.sum() / total.sum()
        by_side = [
            f"{1 - part / whole:.1%}" for part, whole in zip(real, total.sum(axis=0), strict=True)
        ]
        sizes = [len(batch) for batch in batches]
        cost = seconds[name] / seconds["ours, sorted"]
        rows.append([name, f"{len(batches):,}", f"{min(sizes)}-{max(sizes)}", *by_side,
                     f"{total[:, 0].max():,}", f"{cost:.2f}"])  # fmt: skip
    header = ["batches", "number", "pairs", "source padding", "target padding",
              "largest (source tokens)", "time per epoch"]  # fmt: skip
    peers = [name for name in systems if name.startswith("peer")]
    padding = shares["ours, sorted"] / min(shares[name] for name in peers)
    time_ratio = min(seconds[name] for name in peers) / seconds["ours, sorted"]
    return table(header, rows), [
        Goal("padding of ours, sorted, to the peer's best", padding, 1.0, at_least=False),
        Goal("time of an epoch of the peer's fastest to ours, sorted", time_ratio, 1.0, "x"),
    ]


if __name__ == "__main__":
    sys.exit(main())
