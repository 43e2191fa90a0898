#!/usr/bin/env python3
"""What it costs per update to watch for divergence, spikes and a lack of memory.

    torchrun --nproc_per_node 2 benchmarks/update_watch.py [--updates 200]

Runs the same small update in turns, bare and as the trainer runs it while all is well, and compares
the CPU time of neighbors, which a busy machine hardly changes: neither has a collective more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ds_seq import distributed

distributed.import_deepspeed()

from ds_seq.config.deepspeed import engine_config  # noqa: E402
from ds_seq.config.model import TransformerConfig  # noqa: E402
from ds_seq.config.optim import AdamConfig  # noqa: E402
from ds_seq.config.train import TrainConfig  # noqa: E402
from ds_seq.criterions.cross_entropy import CrossEntropy  # noqa: E402
from ds_seq.data.batch import Batch, seq2seq_batch  # noqa: E402
from ds_seq.data.source import TokenBlock  # noqa: E402
from ds_seq.models.build import build_seq2seq  # noqa: E402
from ds_seq.optim import build_optimizer  # noqa: E402
from ds_seq.optim.param_groups import parameter_groups  # noqa: E402
from ds_seq.text.tokenizer import Symbols  # noqa: E402
from ds_seq.training.divergence import Divergence  # noqa: E402
from ds_seq.training.engine import Engine  # noqa: E402
from ds_seq.training.room import RoomFinder  # noqa: E402
from ds_seq.training.run_log import RunLog  # noqa: E402
from ds_seq.training.timing import Timing  # noqa: E402
from ds_seq.training.update import Update, UpdateRunner  # noqa: E402

VOCAB = 1000
MODEL = TransformerConfig(
    d_model=128, ffn_dim=256, num_heads=4, encoder_layers=2, decoder_layers=2, moe=None
)


def main() -> None:
    """Measure, and print the result on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=200, help="pairs of updates")
    count = parser.parse_args().updates
    distributed.init(distributed.discover(os.environ))
    distributed.quiet_deepspeed()
    bare, watched = _sides()
    ratios, seconds = [], []
    for number in range(count + 10):
        times = {}
        for side in (bare, watched) if number % 2 else (watched, bare):
            start = time.process_time()
            side(number)
            times[side] = time.process_time() - start
        ratios.append(times[watched] / times[bare])
        seconds.append(times[bare])
    low, middle, high = statistics.quantiles(ratios[10:], n=4)
    if distributed.rank() == 0:
        print(
            f"{statistics.median(seconds[10:]) * 1000:.1f} ms of CPU per update; watched to bare: "
            f"median {middle:.3f}, quartiles {low:.3f} and {high:.3f}, of {count} pairs on "
            f"{distributed.world_size()} rank(s)"
        )
    distributed.shutdown()


def _sides() -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Return an update without, and with, all that watches over it."""
    config, optimizer = TrainConfig(max_tokens=4000), AdamConfig(lr=1e-4)
    model = build_seq2seq(MODEL, VOCAB, 1, 0, seed=1)
    engine = Engine(
        model,
        lambda groups: build_optimizer(optimizer, groups),
        parameter_groups(model, 0.0),
        lambda update: 1e-4,
        engine_config(config, {}, moe=False),
        expert_parallel=1,
        sparse_clip=False,
    )
    run = UpdateRunner(engine, CrossEntropy(0.1, "fairseq"), 1, Timing(), survives=True)
    log = RunLog(Path(), active=False, tensorboard=False, total_updates=1, done_updates=0)
    divergence = Divergence(config, engine, log, lambda rows: {"train": list(rows)})
    room = RoomFinder(config, run, log, divergence.numbers)
    batches = [_batch()]
    tokens = float(batches[0].num_tokens * distributed.world_size())

    def bare(number: int) -> None:
        local = torch.tensor([tokens, 0.0], dtype=torch.float64)
        distributed.sum_over_ranks(local).tolist()
        run(Update(batches, tokens, False), number)

    def watched(number: int) -> None:
        fitted = room.fitted(batches)
        local = [tokens, 0.0, divergence.last_loss, room.excess(fitted)]
        shared = distributed.sum_over_ranks(torch.tensor(local, dtype=torch.float64)).tolist()
        divergence.observe_loss(shared[2], number)
        update = Update(room.evened(fitted, shared[3]), tokens, False)
        attempt = room(update, number)
        attempt = divergence.judge(update, attempt, number + 1, lambda: attempt)
        divergence.check(attempt.result, number + 1)

    return bare, watched


def _batch() -> Batch:
    random = np.random.default_rng(distributed.rank())
    rows = [random.integers(4, VOCAB, 20).tolist() for _ in range(16)]
    return seq2seq_batch(TokenBlock.of(rows), TokenBlock.of(rows), Symbols(0, 1, 2, 1, 3))


if __name__ == "__main__":
    main()
