"""moe_overhead.py: a feed-forward layer with experts, compared to the dense one and DeepSpeed's.

Shapes: N tokens, D model, E experts.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from common import Goal, Section, Spread, table
from torch import Tensor, nn
from turns import Rounds, take_turns

from ds_seq import distributed
from ds_seq.config.model import TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.modules.body import BodyOutput

LAYER_GOALS = {8: 1.25, 64: 1.8}
GATE_LOSS_WEIGHT = 0.01
SEQUENCE = 32  # tokens per sentence, irrelevant for a feed-forward layer


@dataclass(frozen=True)
class Shape:
    """Widths of the layer and extent of the measurement.

    Attributes:
        d_model: model width D.
        ffn_dim: inner width of the dense layer and of each expert.
        tokens: number of tokens N in the comparison with the dense layer.
        threads: number of threads of this process.
        rounds: maximum number of rounds per comparison.
        seconds: time after which a comparison begins no round, provided there have been two.
    """

    d_model: int
    ffn_dim: int
    tokens: int
    threads: int
    rounds: int
    seconds: float


def feed_forward(d_model: int, ffn_dim: int, num_experts: int | None) -> nn.Module:
    """Return a feed-forward layer as in a model: dense, or top-1 over experts without a capacity.

    Args:
        d_model: model width D.
        ffn_dim: inner width.
        num_experts: number of experts E; None for the dense layer.
    """
    moe = {"num_experts": num_experts, "top_k": 1, "placement": "encoder", "every": 1}
    config = TransformerConfig.model_validate(
        {
            "d_model": d_model,
            "ffn_dim": ffn_dim,
            "num_heads": 1,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "activation": "relu",
            "dropout": 0.0,
            "moe": None if num_experts is None else {**moe, "capacity_factor": None},
        }
    )
    layer = (
        build_seq2seq(config, vocab_size=8, expert_parallel=1, expert_parallel_rank=0, seed=1)
        .encoder.layers[0]
        .feed_forward
    )
    assert isinstance(layer, nn.Module)
    return layer.train()


def step_of(layer: nn.Module, d_model: int, tokens: int) -> Callable[[], None]:
    """Return a function that does one forward and backward pass.

    Gradients are those of inputs and parameters. They are dropped before each call, as an
    optimizer's `zero_grad` does.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (max(tokens // SEQUENCE, 1), min(SEQUENCE, tokens), d_model)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    grad = torch.randn(shape, generator=generator)
    parameters = list(layer.parameters())

    def step() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None
        out, gate_loss = _call(layer, x)
        if gate_loss is None:
            torch.autograd.backward([out], [grad])
        else:
            torch.autograd.backward([out, GATE_LOSS_WEIGHT * gate_loss], [grad, None])

    return step


def _call(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return output and sum of router losses, of our layers or of DeepSpeed's."""
    result = layer(x)
    if not isinstance(result, BodyOutput):  # DeepSpeed: output, loss, counts
        return result[0], result[1]
    out, aux, _ = result
    return out, None if aux is None else sum(aux.losses.values())


def layer_section(shape: Shape) -> Section:
    """Compare our layer with 8 and 64 experts to the dense one."""
    layers = {"dense": feed_forward(shape.d_model, shape.ffn_dim, None)}
    for num_experts in LAYER_GOALS:
        name = _name(num_experts)
        layers[name] = feed_forward(shape.d_model, shape.ffn_dim, num_experts)
    sides = {name: step_of(layer, shape.d_model, shape.tokens) for name, layer in layers.items()}
    rounds = take_turns(sides, shape.rounds, shape.seconds)
    rows = [
        [
            name,
            f"{sum(p.numel() for p in layer.parameters()):,}",
            Spread.of([1000 * s for s in rounds.seconds(name)]).text(1),
            Spread.of(rounds.ratios(name, "dense")).text(2),
            _shares(layer, shape),
        ]
        for name, layer in layers.items()
    ]
    header = ["layer", "parameters", "ms forward + backward", "to dense", "tokens per expert"]
    body = (
        f"{table(header, rows)}\n\n"
        f"Medians (and extremes) of {rounds.count} rounds; width {shape.d_model}/{shape.ffn_dim}, "
        f"{shape.tokens:,} tokens, relu, fp32, {shape.threads} threads, busy "
        f"{rounds.busy(shape.threads):.0%} of the time. Top-1, no token dropped, random inputs and "
        "an untrained router; the router losses are included."
    )
    goals = [
        Goal(
            f"layer, {num_experts} experts to dense",
            statistics.median(rounds.ratios(_name(num_experts), "dense")),
            bound,
            "x",
            at_least=False,
        )
        for num_experts, bound in LAYER_GOALS.items()
    ]
    return Section("One layer against the dense one", body, goals)


def _name(num_experts: int) -> str:
    return f"{num_experts} experts"


@torch.no_grad()
def _shares(layer: nn.Module, shape: Shape) -> str:
    """Return the fewest and most tokens of an expert."""
    x = torch.randn(1, shape.tokens, shape.d_model, generator=torch.Generator().manual_seed(1))
    aux = layer(x).aux
    if aux is None:
        return ""
    load = aux.stats.load
    return f"{int(load.min())} to {int(load.max())}"


def deepspeed_section(shape: Shape, tokens: Sequence[int], experts: Sequence[int]) -> Section:
    """Compare our layer to `deepspeed.moe.layer.MoE` over a grid of sizes."""
    distributed.init(distributed.World())
    distributed.quiet_deepspeed()
    try:
        results = {
            (number, num_experts): _against_deepspeed(shape, number, num_experts)
            for number in tokens
            for num_experts in experts
        }
    finally:
        distributed.shutdown()
    rows = [
        [f"{number:,}", *(_cell(*results[number, num_experts]) for num_experts in experts)]
        for number in tokens
    ]
    medians = {
        key: statistics.median(rounds.ratios("ours", "deepspeed"))
        for key, (rounds, _) in results.items()
    }
    number, num_experts = max(medians, key=lambda key: medians[key])
    fewest = min(rounds.count for rounds, _ in results.values())
    header = ["tokens", *(f"{num_experts} experts" for num_experts in experts)]
    body = (
        f"{table(header, rows)}\n\n"
        "Time of our layer over that of `deepspeed.moe.layer.MoE`, forward + backward: median "
        f"(and extremes) of {fewest} or more rounds, and the share of the tokens that DeepSpeed's "
        f"dropped (capacity factor 1.0; ours drops none). Width {shape.d_model}/{shape.ffn_dim}, "
        f"top-1, relu, fp32, one process, {shape.threads} threads."
    )
    name = f"layer to DeepSpeed's, worst ({number:,} tokens, {num_experts} experts)"
    goal = Goal(name, medians[number, num_experts], 1.0, "x", at_least=False)
    return Section("One layer against DeepSpeed's", body, [goal])


def _cell(rounds: Rounds, dropped: float) -> str:
    return f"{Spread.of(rounds.ratios('ours', 'deepspeed')).text(2)}, {dropped:.0%}"


def _against_deepspeed(shape: Shape, tokens: int, num_experts: int) -> tuple[Rounds, float]:
    """Measure one size; return the rounds and the share of tokens that DeepSpeed drops."""
    from deepspeed.moe.layer import MoE

    torch.manual_seed(1)
    expert = nn.Sequential(
        nn.Linear(shape.d_model, shape.ffn_dim), nn.ReLU(), nn.Linear(shape.ffn_dim, shape.d_model)
    )
    with contextlib.redirect_stdout(sys.stderr):  # it prints a greeting
        theirs = MoE(shape.d_model, expert, num_experts, k=1, capacity_factor=1.0)
        theirs.set_deepspeed_parallelism()
    theirs.train()
    ours = feed_forward(shape.d_model, shape.ffn_dim, num_experts)
    sides = {
        "ours": step_of(ours, shape.d_model, tokens),
        "deepspeed": step_of(theirs, shape.d_model, tokens),
    }
    rounds = take_turns(sides, shape.rounds, shape.seconds)
    capacity = max(math.ceil(tokens / num_experts), 4)
    counts = theirs.deepspeed_moe.exp_counts
    dropped = float((counts - capacity).clamp(min=0).sum()) / tokens
    ratio = statistics.median(rounds.ratios("ours", "deepspeed"))
    text = f"{tokens:,} tokens, {num_experts} experts: {ratio:.2f} of DeepSpeed's time"
    print(text, file=sys.stderr, flush=True)
    return rounds, dropped
