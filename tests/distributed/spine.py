"""A small training run on every rank, shared by the distributed tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.config.deepspeed import engine_config
from ds_seq.config.model import ModelConfig, MoeConfig
from ds_seq.config.optim import AdamConfig, SgdConfig
from ds_seq.config.train import TrainConfig
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.dataset import Batch
from ds_seq.models.build import build_seq2seq
from ds_seq.models.weights import load_weights
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.moe.losses import GATE_LOSSES
from ds_seq.optim import build_optimizer
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.training.checkpoint import restore
from ds_seq.training.engine import Engine
from ds_seq.training.state import WEIGHT, FullState

VOCAB = 23
SHARED_STEPS = 4  # micro-batches of an update over all ranks, whatever the layout


def model_config(**changes: Any) -> ModelConfig:
    """Two layers a side, experts in the second ones; dropless: every layout routes alike."""
    moe = MoeConfig(num_experts=4, top_k=2, capacity_factor=None)
    sizes = {"d_model": 16, "ffn_dim": 24, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    return ModelConfig(**{**sizes, "dropout": 0.0, "moe": moe, **changes})  # type: ignore[arg-type]


def batches(update: int) -> list[Batch]:
    """Four batches of unequal size, the same on every rank; every second update ends empty."""
    generator = torch.Generator().manual_seed(update)
    made = []
    for index, (rows, length) in enumerate(((2, 5), (3, 7), (1, 3), (4, 4))):
        src = torch.randint(4, VOCAB, (rows, length), generator=generator)
        tgt = torch.randint(4, VOCAB, (rows, length), generator=generator)
        src[0, length - 1 :], tgt[0, length - 2 :] = 1, 1  # padding
        if index == 3 and update % 2:
            src, tgt = torch.tensor([[2]]), torch.tensor([[1]])
        tgt_in = torch.cat([torch.full_like(tgt[:, :1], 2), tgt[:, :-1]], dim=1)
        made.append(
            Batch(torch.arange(len(src)), src, tgt_in, tgt, int((tgt != 1).sum()), len(src))
        )
    return made


def make_engine(
    stage: int,
    expert_parallel: int,
    *,
    precision: str = "fp32",
    optimizer: Any = None,
    clip: float = 0.0,
    checkpoint: Path | None = None,
    model: ModelConfig | None = None,
    zero: dict[str, Any] | None = None,
) -> Engine:
    """An engine as `ds_seq.train` makes it."""
    train = TrainConfig(
        accumulate=SHARED_STEPS // distributed.world_size(),
        expert_parallel=expert_parallel,
        precision=precision,  # type: ignore[arg-type]
        clip_norm=clip,
    )
    net = build_seq2seq(
        model or model_config(),
        VOCAB,
        expert_parallel,
        distributed.rank() % expert_parallel,
        seed=5,
    )
    if checkpoint is not None:
        load_weights(net, checkpoint)
    connect_expert_parallel(net, expert_parallel)
    config = optimizer or AdamConfig(lr=0.01)
    engine = Engine(
        net,
        lambda groups: build_optimizer(config, groups),
        parameter_groups(net, 0.01),
        lambda update: config.lr,
        engine_config(train, {"zero_optimization": {"stage": stage, **(zero or {})}}, moe=True),
        expert_parallel=expert_parallel,
    )
    if checkpoint is not None:
        restore(engine, checkpoint)
    return engine


def train(engine: Engine, updates: range) -> list[tuple[float, float, bool]]:
    """Run updates; returns (loss per token, gradient norm, applied) of each."""
    weights = {"load_balance": 0.5, "router_z": 0.1}
    criterion = ModelAndBase(CrossEntropy(0.1, "fairseq", 1), weights, GATE_LOSSES)
    world, rank = distributed.world_size(), distributed.rank()
    results = []
    engine.module.train()
    for update in updates:
        everyone = batches(update)
        tokens = sum(batch.num_tokens for batch in everyone)
        total, result = torch.zeros(()), None
        for batch in everyone[rank::world]:
            loss = criterion(engine(batch), batch)
            engine.backward(loss.total * (world * engine.accumulate / tokens))
            result = engine.step()
            total += loss.total.detach().float()
        assert result is not None
        loss_per_token = float(distributed.sum_over_ranks(total)) / tokens
        results.append((loss_per_token, result.grad_norm, result.applied))
    return results


def all_weights(engine: Engine) -> dict[str, Tensor]:
    """fp32 weights by name, experts of all ranks concatenated in global order; a collective."""
    state = FullState(engine.deepspeed)
    mine = {}
    for name, parameter in state.parameters():
        value = state.read(parameter, WEIGHT)
        assert value is not None
        mine[name] = value.detach().cpu().clone()
    parts = distributed.broadcast_object(distributed.gather_objects(mine))
    spread = engine.expert_parallel
    return {
        name: torch.cat([part[name] for part in parts[:spread]]) if ".experts." in name else value
        for name, value in mine.items()
    }


SGD = SgdConfig(lr=0.3)
