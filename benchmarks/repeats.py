#!/usr/bin/env python3
"""How often a pair comes again within some updates of an epoch of a mix, and the padding of it.

    python benchmarks/repeats.py EXPERIMENT [KEY=VALUE ...] [--updates 50] [--epochs 2]

Reads the shards of an experiment and orders them as one process does. A repeat is a pair that the
last updates, the present one included, have held before; windows begin every fifth of their size.
Padding is the share of padded places of both sides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import table
from numpy.typing import NDArray

from ds_seq.config.load import load_experiment
from ds_seq.config.outside import TRAINING
from ds_seq.data.stream import Legs
from ds_seq.tasks import build_task
from ds_seq.tasks.mix import build_mix
from ds_seq.training.inputs import train_sampler


def repeats(batches: Sequence[NDArray[np.int64]]) -> float:
    """Return the share of pairs that another pair of the same batches repeats."""
    pairs = np.concatenate(batches)
    return 1.0 - len(np.unique(pairs)) / len(pairs)


def padding(batches: Sequence[NDArray[np.int64]], lengths: NDArray[np.integer]) -> float:
    """Return the share of padded places."""
    sides = [lengths[batch].astype(np.int64) for batch in batches]
    places = sum(len(each) * int(each.max(axis=0).sum()) for each in sides)
    return 1.0 - sum(int(each.sum()) for each in sides) / places


def main() -> int:
    """Print a table with a row per epoch; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    config = load_experiment(arguments.experiment, arguments.overrides, TRAINING)
    dataset = build_task(config.task, config.data).dataset("train")
    sampler = train_sampler(config, dataset, 0, 1)
    legs = Legs(sampler, build_mix(config.data, config.train.seed, dataset, sampler))
    position, rows = legs.start, []
    for _ in range(arguments.epochs):
        batches = [batch for batch in legs.batches(position) if len(batch)]
        size = arguments.updates * sampler.group
        starts = range(0, max(1, len(batches) - size), max(1, size // 5))
        near = [repeats(batches[start : start + size]) for start in starts]
        shares = np.mean(near), np.mean([repeats([batch]) for batch in batches])
        rows.append(
            [
                str(position.epoch),
                f"{sum(map(len, batches)):,}",
                f"{len(batches):,}",
                *(f"{share:.2%}" for share in (*shares, padding(batches, dataset.lengths))),
            ]
        )
        position = legs.after(position)
    within = f"repeats in {arguments.updates} updates"
    print(table(["epoch", "pairs", "batches", within, "in a batch", "padding"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
