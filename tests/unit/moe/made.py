"""Routers and layers for the tests of this folder, and reference computations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.choice import SoftmaxChoice
from ds_seq.moe.cosine import CosineRouter
from ds_seq.moe.expert_choice import ExpertChoiceRouter
from ds_seq.moe.experts import Experts
from ds_seq.moe.language import LanguageRouter
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import Router, SoftmaxRouter
from ds_seq.moe.sigmoid import SigmoidRouter
from tests.values import BIAS_RATE, MIN_CAPACITY

D, FFN, E = 8, 12, 4
ROUTERS = ("softmax", "cosine", "sigmoid", "expert_choice", "language")

# six tokens, four experts: first choices 0, 0, 1, 0, 3, 0
LOGITS = torch.tensor(
    [[2, 0, 0, 0], [1.5, 0, 1, 0], [0, 3, 0, 0], [1, 0.5, 0, 0], [0, 0, 0.5, 1], [2.5, 0, 0, 1]]
)


def make_choice(top_k: int, **chance: Any) -> SoftmaxChoice:
    """Return a deterministic top-K choice, except for the options `chance`."""
    plain = {"noise": "none", "second_expert": "always", "second_by_share": False}
    return SoftmaxChoice(top_k, **{**plain, **chance})


def make_router(
    name: str = "softmax",
    top_k: int = 1,
    num_experts: int = E,
    d_model: int = D,
    chance: dict[str, Any] | None = None,
    **options: Any,
) -> Router:
    """Return a randomly drawn router; `chance` are options of `SoftmaxChoice`."""
    sizes = (d_model, num_experts)
    if name in ("softmax", "cosine"):
        choice = make_choice(top_k, **(chance or {}))
        if name == "softmax":
            return SoftmaxRouter(*sizes, choice, **{"load_balance": "rank", **options})
        return CosineRouter(
            *sizes, choice, **{"router_dim": None, "load_balance": "rank", **options}
        )
    if name == "sigmoid":
        plain = {"bias_rate": BIAS_RATE, "noise": "none", "load_balance": "rank"}
        return SigmoidRouter(*sizes, top_k, **{**plain, **options})
    if name == "expert_choice":
        return ExpertChoiceRouter(*sizes, top_k, **{"capacity_factor": 1.0, **options})
    return LanguageRouter(*sizes, top_k, **{"load_balance": "rank", **options})


def plain_layer(router: Router, experts: Experts, **options: Any) -> MoeFeedForward:
    """Return a layer that drops no token and does not normalize weights, except for `options`."""
    plain = {
        "capacity_factor": None,
        "eval_capacity_factor": None,
        "min_capacity": MIN_CAPACITY,
        "drop": "position",
        "normalize_weights": "none",
        "output_masking": 0.0,
    }
    return MoeFeedForward(router, experts, **{**plain, **options})


def make_layer(
    router: str | Router = "softmax",
    top_k: int = 1,
    num_experts: int = E,
    d_model: int = D,
    activation: str = "relu",
    seed: int = 0,
    chance: dict[str, Any] | None = None,
    **options: Any,
) -> MoeFeedForward:
    """Return a layer on one rank; experts have random biases, since zeros would hide mistakes."""
    torch.manual_seed(seed)
    if isinstance(router, str):
        router = make_router(router, top_k, num_experts, d_model, chance)
    experts = Experts(d_model, FFN, num_experts, 0, activation, 0.0, seed)
    with torch.no_grad():
        experts.b1.normal_()
        experts.b2.normal_()
    return plain_layer(router, experts, **options)


def golden_layer(top_k: int = 1, **options: Any) -> MoeFeedForward:
    """Return a layer that routes by `LOGITS`; the output shows the weight of each expert."""
    layer = make_layer("softmax", top_k, d_model=4, **options).train()
    with torch.no_grad():
        layer.gate.weight.copy_(torch.eye(4))
        for parameter in layer.experts.parameters():
            parameter.zero_()
        layer.experts.b2[:, 0] = torch.eye(4)
    return layer


def dense_twin(experts: Experts, index: int) -> FeedForward:
    """Return the dense feed-forward with the parameters of one expert."""
    width, d_model = experts.b1.shape[-1], experts.b2.shape[-1]
    ffn_dim = width // 2 if experts.activation == "swiglu" else width
    dense = FeedForward(d_model, ffn_dim, experts.activation, 0.0).to(experts.b1.dtype)
    pairs = ((dense.up, experts.w1, experts.b1), (dense.down, experts.w2, experts.b2))
    with torch.no_grad():
        for part, weight, bias in pairs:
            matrix = weight[index]
            part.weight.copy_(matrix if matrix.shape == part.weight.shape else matrix.t())
            part.bias.copy_(bias[index, 0])
    return dense


def all_experts(experts: Experts, x: Tensor) -> Tensor:
    """Return the output (B, T, E, D) of each expert for each row of `x` (B, T, D)."""
    return torch.stack([dense_twin(experts, e)(x)[0] for e in range(experts.num_local)], dim=-2)


def right_padded(lengths: list[int], length: int | None = None) -> Tensor:
    """Return (B, T) bool, True at the first tokens of each row."""
    return torch.arange(length or max(lengths)) < torch.tensor(lengths).unsqueeze(1)
