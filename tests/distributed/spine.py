"""A small training run on every rank, shared by the distributed tests."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.deepspeed import engine_config
from ds_seq.config.ema import EmaConfig
from ds_seq.config.model import ModelConfig, MoeConfig, TransformerConfig
from ds_seq.config.optim import AdamConfig, SgdConfig
from ds_seq.config.train import TrainConfig
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.batch import Batch
from ds_seq.models import build_model
from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.modules.multiway import Markers
from ds_seq.moe.balance import BiasBalancer
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import ROUTER_LOSSES, Capture
from ds_seq.optim import build_optimizer, lr_factors
from ds_seq.optim.param_groups import LR_FACTOR, parameter_groups, with_lr_factors
from ds_seq.training.ema import Ema
from ds_seq.training.engine import Engine
from ds_seq.training.restore import restore
from ds_seq.training.state import WEIGHT, FullState, full_shape
from ds_seq.weights.fill import load_weights, persistent_buffers
from tests.batches import batch_of, text_batch_of

VOCAB = 23
SIZES = ((2, 5), (3, 7), (1, 3), (4, 4), (2, 2), (1, 9), (3, 3), (2, 6))  # sentences, length
FEW = 4  # micro-batches of an update over all ranks, whatever the layout; at most `len(SIZES)`
SGD = SgdConfig(lr=0.3)
WIDTHS: dict[str, Any] = {"d_model": 16, "ffn_dim": 24, "num_heads": 2, "dropout": 0.0}
LOSS_WEIGHTS = {"load_balance": 0.5, "router_z": 0.1, "budget": 0.3}

Steps = list[tuple[float, float, bool]]


class Result(NamedTuple):
    """What a layout makes of the same model and the same batches."""

    steps: Steps
    """(loss per token, gradient norm, applied) of each update."""
    gradients: dict[str, Tensor]
    """Of the last update, before clipping, by name; experts in global order."""
    weights: dict[str, Tensor]
    """After the last update; the counters of routers among them."""


def model_config(**changes: Any) -> TransformerConfig:
    """Two layers per side, experts in the second ones; dropless: every layout routes alike."""
    moe = MoeConfig(num_experts=4, top_k=2, capacity_factor=None)
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    return TransformerConfig(**{**WIDTHS, **layers, "moe": moe, **changes})  # type: ignore[arg-type]


def small_model(**changes: Any) -> TransformerConfig:
    """One layer per side, both with experts: what an engine does to it, in half the time."""
    moe = MoeConfig(num_experts=4, top_k=2, capacity_factor=None, every=1)
    return model_config(**{"encoder_layers": 1, "decoder_layers": 1, "moe": moe, **changes})


def batches(update: int, count: int = FEW) -> list[Batch]:
    """Batches of unequal size, the same on every rank; every second update ends with an empty one.

    Args:
        update: number of the update.
        count: how many.
    """
    generator = torch.Generator().manual_seed(update)
    made = []
    for index, (rows, length) in enumerate(SIZES[:count]):
        src = torch.randint(4, VOCAB, (rows, length), generator=generator)
        tgt = torch.randint(4, VOCAB, (rows, length), generator=generator)
        src[0, length - 1 :], tgt[0, length - 2 :] = 1, 1  # padding
        if index in (3, count - 1) and update % 2:
            src, tgt = torch.tensor([[2]]), torch.tensor([[1]])
        made.append(batch_of(src, tgt))
    return made


def batches_for(net: nn.Module, update: int, count: int) -> list[Batch]:
    """Return `batches` as the model reads them: of a language model, the targets."""
    made = batches(update, count)
    return [*map(text_batch_of, made)] if isinstance(net, DecoderOnlyTransformer) else made


def make_engine(  # noqa: PLR0913 - a builder: one argument for each choice
    stage: int,
    expert_parallel: int,
    *,
    precision: str = "fp32",
    optimizer: Any = None,
    clip: float = 0.0,
    sparse_clip: bool = False,
    decay: float = 0.01,
    checkpoint: Path | None = None,
    model: ModelConfig | None = None,
    zero: dict[str, Any] | None = None,
    sections: dict[str, Any] | None = None,
    micro_batches: int = FEW,
    prepare: Callable[[nn.Module], object] | None = None,
    capture: Capture = "none",
    ema: EmaConfig | None = None,
) -> Engine:
    """An engine as `ds_seq.train` makes it.

    Args:
        stage: of ZeRO; under 3 every parameter is cut, however small.
        expert_parallel: ranks that share the experts.
        precision: fp32, bf16 or fp16.
        optimizer: its config.
        clip: see `train.clip_norm`.
        sparse_clip: see `train.sparse_clip`.
        decay: weight decay.
        checkpoint: to go on from.
        model: instead of `model_config`.
        zero: more keys of `zero_optimization`.
        sections: more sections of the DeepSpeed JSON.
        micro_batches: of an update over all ranks.
        prepare: may change the model when it is new.
        capture: what the output shall hold of the model's layers.
        ema: see `train.ema`.
    """
    train = TrainConfig(
        accumulate=micro_batches // distributed.world_size(),
        expert_parallel=expert_parallel,
        precision=precision,  # type: ignore[arg-type]
        clip_norm=clip,
        sparse_clip=sparse_clip,
    )
    net = build_model(
        model or model_config(),
        VOCAB,
        expert_parallel,
        distributed.rank() % expert_parallel,
        seed=5,
    )
    _mark(net)
    if prepare is not None:
        prepare(net)
    if checkpoint is not None:
        load_weights(net, checkpoint)
    connect_expert_parallel(net, expert_parallel)
    config = optimizer or AdamConfig(lr=0.01)
    # DeepSpeed would leave parameters as small as ours whole
    sizes = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    json = {"zero_optimization": {"stage": stage, **sizes, **(zero or {})}, **(sections or {})}
    gc.freeze()  # DeepSpeed collects garbage often: let it not walk through earlier engines
    engine = Engine(
        net,
        lambda groups: build_optimizer(config, groups),
        _groups(net, decay, config),
        lambda update: config.lr,
        engine_config(train, json, moe=True),
        expert_parallel=expert_parallel,
        sparse_clip=sparse_clip,
        capture=capture,
    )
    if ema is not None:
        engine.ema = Ema(engine, ema)
    if checkpoint is not None:
        restore(engine, checkpoint)
    return engine


def _groups(net: nn.Module, decay: float, optimizer: Any) -> list[dict[str, Any]]:
    return with_lr_factors(parameter_groups(net, decay), net, lr_factors(optimizer))


def _mark(net: nn.Module) -> None:
    """Let two ids choose sets of parameters, so that some batches have no token of the second."""
    for part in net.modules():
        if isinstance(part, Markers):
            part.mark({5: 1, 6: 0})


def train(engine: Engine, updates: range, before_step: Callable[[], None] = lambda: None) -> Steps:
    """Run updates; ``before_step`` is called when the gradients of an update are complete."""
    criterion = make_criterion()
    world, rank = distributed.world_size(), distributed.rank()
    balancer, results = BiasBalancer(engine.module), []
    engine.module.train()
    for update in updates:
        everyone = batches_for(engine.module, update, world * engine.accumulate)
        tokens = sum(batch.num_tokens for batch in everyone)
        total, result = torch.zeros(()), None
        mine = everyone[rank::world]
        for index, batch in enumerate(mine):
            output = engine(batch)
            loss = criterion(output, batch)
            balancer.add(output.moe_stats)
            engine.backward(loss.total * (world * engine.accumulate / tokens))
            if index + 1 == len(mine):
                before_step()
            result = engine.step()
            total += loss.total.detach().float()
        assert result is not None
        if result.applied:
            balancer.update()
        loss_per_token = float(distributed.sum_over_ranks(total)) / tokens
        results.append((loss_per_token, result.grad_norm, result.applied))
    return results


def run(stage: int, expert_parallel: int, updates: int, options: dict[str, Any]) -> Result:
    """Train a new engine; the gradients are those of the last update."""
    engine = make_engine(stage, expert_parallel, **options)
    gradients: dict[str, Tensor] = {}
    last = updates - 1
    steps = train(engine, range(last))
    steps += train(engine, range(last, updates), lambda: gradients.update(all_gradients(engine)))
    return Result(steps, gradients, {**all_weights(engine), **_counters(engine.module)})


def emulate(
    updates: int,
    *,
    optimizer: Any = SGD,
    clip: float = 0.0,
    sparse_clip: bool = False,
    model: ModelConfig | None = None,
    micro_batches: int = FEW,
    loss_weights: dict[str, float] = LOSS_WEIGHTS,
) -> Result:
    """The same training in one process and in plain torch: what every layout has to equal."""
    net = build_model(model or model_config(), VOCAB, 1, 0, seed=5).train()
    _mark(net)
    own = build_optimizer(optimizer, _groups(net, 0.01, optimizer))
    for group in own.param_groups:
        group["lr"] *= group.get(LR_FACTOR, 1.0)
    criterion, balancer, steps = make_criterion(loss_weights), BiasBalancer(net), []
    gradients: dict[str, Tensor] = {}
    for update in range(updates):
        everyone = batches_for(net, update, micro_batches)
        tokens = sum(batch.num_tokens for batch in everyone)
        total = torch.zeros(())
        own.zero_grad(set_to_none=False)
        for batch in everyone:
            output = net(batch.inputs)
            loss = criterion(output, batch)
            balancer.add(output.moe_stats)
            (loss.total / tokens).backward()
            total += loss.total.detach()
        gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        norm = norm_of(gradients, net if sparse_clip else None)
        for parameter in net.parameters() if 0.0 < clip < norm else ():
            assert parameter.grad is not None
            parameter.grad *= clip / (norm + 1e-6)
        own.step()
        balancer.update()
        steps.append((float(total) / tokens, norm, True))
    weights = {name: value.detach().clone() for name, value in net.named_parameters()}
    return Result(steps, gradients, {**weights, **_counters(net)})


def norm_of(gradients: dict[str, Tensor], sparse: nn.Module | None = None) -> float:
    """Norm of whole gradients; with a model, its experts weigh 1 / sqrt(E)."""
    factors = dict.fromkeys(gradients, 1.0)
    for prefix, layer in sparse.named_modules() if sparse is not None else ():
        if isinstance(layer, MoeFeedForward):
            for name in gradients:
                if name.startswith(f"{prefix}.experts."):
                    factors[name] = float(layer.num_experts) ** -0.5
    squares = [(factors[name] * value.double()).square().sum() for name, value in gradients.items()]
    return float(torch.stack(squares).sum().sqrt())


def make_criterion(loss_weights: dict[str, float] = LOSS_WEIGHTS) -> ModelAndBase:
    """Smoothed cross-entropy and all gate losses."""
    return ModelAndBase(CrossEntropy(0.1, "fairseq"), loss_weights, ROUTER_LOSSES)


def _counters(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in persistent_buffers(module)}


def all_weights(engine: Engine) -> dict[str, Tensor]:
    """fp32 weights by name, experts of all ranks concatenated in global order; a collective."""
    state = FullState(engine.deepspeed)
    mine = {}
    for name, parameter in state.parameters():
        value = state.read(parameter, WEIGHT)
        assert value is not None
        mine[name] = value.detach().cpu().clone()
    return _whole(mine, engine.expert_parallel)


def all_gradients(engine: Engine) -> dict[str, Tensor]:
    """Reduced fp32 gradients by name between the last backward and the step, like `all_weights`."""
    mine = {}
    for name, parameter in engine.module.named_parameters():
        value = safe_get_full_grad(parameter)
        assert value is not None, name
        mine[name] = value.detach().float().cpu().reshape(full_shape(parameter)).clone()
    return _whole(mine, engine.expert_parallel)


def _whole(mine: dict[str, Tensor], spread: int) -> dict[str, Tensor]:
    experts = {name: value for name, value in mine.items() if ".experts." in name}
    if spread == 1 or not experts:
        return mine
    flat = torch.cat([value.flatten() for value in experts.values()])  # one message, not pickles
    everyone = [torch.empty_like(flat) for _ in range(distributed.world_size())]
    dist.all_gather(everyone, flat)
    sizes = [value.numel() for value in experts.values()]
    parts = zip(*(part.split(sizes) for part in everyone[:spread]), strict=True)
    whole = {
        name: torch.cat([part.view_as(value) for part in pieces])
        for (name, value), pieces in zip(experts.items(), parts, strict=True)
    }
    return {**mine, **whole}
