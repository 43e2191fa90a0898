"""What `train.ema` adds to an update: processor time of its parts, by turns in one process.

    python benchmarks/ema_cost.py

Prints the median of the rounds of forward and backward over a batch, the step of AdamW, and the
averaging of the weights, with one thread.
"""

# ruff: noqa: E402 - DeepSpeed is imported first, quietly

from __future__ import annotations

import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ds_seq import distributed

distributed.import_deepspeed()

import torch

from ds_seq.config.deepspeed import engine_config
from ds_seq.config.ema import EmaConfig
from ds_seq.config.model import TransformerConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.config.train import TrainConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models.build import build_seq2seq
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.training.ema import Ema
from ds_seq.training.engine import Engine

VOCAB, SENTENCES, LENGTH, ROUNDS = 8000, 40, 25, 7


def _engine(stage: int) -> Engine:
    sizes = {"d_model": 256, "ffn_dim": 1024, "num_heads": 4}
    net = build_seq2seq(TransformerConfig(**sizes), VOCAB, 1, 0, seed=1)  # type: ignore[arg-type]
    json = {"zero_optimization": {"stage": stage}}
    config = AdamConfig(lr=1e-4)
    return Engine(
        net,
        lambda groups: build_optimizer(config, groups),
        parameter_groups(net, 0.01),
        lambda update: config.lr,
        engine_config(TrainConfig(), json, moe=False),
        expert_parallel=1,
        sparse_clip=False,
    )


def _measure(stage: int) -> None:
    engine = _engine(stage)
    ema = Ema(engine, EmaConfig())
    ids = torch.randint(4, VOCAB, (SENTENCES, LENGTH))
    mask = torch.ones_like(ids, dtype=torch.bool)
    inputs = Seq2SeqInputs(ids, mask, ids, mask, ids.numel(), ids.numel())
    times: dict[str, list[float]] = {"forward and backward": [], "AdamW": [], "average": []}
    engine.module.train()
    for _ in range(ROUNDS + 2):
        marks = [time.process_time()]
        engine.backward(engine.deepspeed(inputs, "none").logits.float().logsumexp(-1).mean())
        marks.append(time.process_time())
        engine.step()
        marks.append(time.process_time())
        ema.update()
        marks.append(time.process_time())
        for name, (start, end) in zip(times, pairwise(marks), strict=True):
            times[name].append(1000 * (end - start))
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    share = medians["average"] / sum(medians.values())
    count = sum(parameter.numel() for parameter in engine.module.parameters())
    shown = ", ".join(f"{name} {value:.1f} ms" for name, value in medians.items())
    print(f"ZeRO {stage}, {count:,} parameters, {ids.numel():,} tokens: {shown}; {share:.1%}")


def main() -> int:
    """Measure with whole tensors and with slices."""
    torch.set_num_threads(1)
    distributed.init(distributed.discover(os.environ))
    distributed.quiet_deepspeed()
    for stage in (0, 1):
        _measure(stage)
    distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
