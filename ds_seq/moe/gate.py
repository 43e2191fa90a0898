"""Routing policies: which experts a token visits, and with which weights.

Legend: ``N`` real tokens (padding is taken out before), ``D`` model, ``E`` experts, ``K`` experts
per token, ``C`` capacity: the most assignments one expert accepts in one forward.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.moe.losses import LOAD_BALANCE, ROUTER_Z, load_balance_loss, router_z_loss

NOISES = ("none", "jitter", "gumbel")
JITTER = 0.01


class Routing(NamedTuple):
    """The gate's answer for N tokens."""

    experts: Tensor
    """(N, K) int64: chosen experts, the preferred one first."""
    weights: Tensor
    """(N, K) float32: what the outputs of those experts are multiplied with."""
    probabilities: Tensor
    """(N, E) float32: the whole distribution, for losses and statistics."""
    losses: dict[str, Tensor]


class TopKGate(nn.Module):
    """Softmax over expert logits, best K (Shazeer et al. 2017; K=1: Switch, arXiv:2101.03961).

    Logits, softmax and weights are float32 whatever the precision of the model: with half-precision
    logits near-ties flip between the forward and a recomputed forward.

    Args:
        d_model: D.
        num_experts: E.
        top_k: K.
        noise: what makes training explore. ``jitter`` multiplies the gate's input by U(0.99, 1.01);
            ``gumbel`` adds Gumbel noise to the logits for the choice, not for the weights.
        normalize_weights: scale the K weights to sum 1. With K = 1 this must be off, or the weight
            is the constant 1 and the gate learns nothing from the translation loss.
    """

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, noise: str, normalize_weights: bool
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"noise={noise!r}: one of {', '.join(NOISES)}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k={top_k} must lie between 1 and num_experts={num_experts}")
        self.num_experts, self.top_k = num_experts, top_k
        self.noise, self.normalize_weights = noise, normalize_weights
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small enough that no expert starts as everybody's favourite."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Routing:
        """Route the rows ``real`` of ``x``.

        Args:
            x: (M, D) hidden states, padding included.
            real: (N,) int64 rows to route; ``None`` for all. Selecting among the (M, E) logits is
                cheaper than selecting among the rows of ``x``.
        """
        inputs = x.float()
        if self.training and self.noise == "jitter":
            inputs = inputs * torch.empty_like(inputs).uniform_(1 - JITTER, 1 + JITTER)
        logits = F.linear(inputs, self.weight.float())  # (M, E)
        if real is not None:
            logits = logits.index_select(0, real)  # (N, E)
        probabilities = logits.softmax(-1)
        if self.training and self.noise == "gumbel":
            # log of an exponential variate is minus a Gumbel variate
            noisy = logits.detach() - torch.empty_like(logits).exponential_().log()
            experts = noisy.topk(self.top_k, dim=-1).indices
            weights = probabilities.gather(-1, experts)
        else:
            weights, experts = probabilities.topk(self.top_k, dim=-1)
        losses = {
            LOAD_BALANCE: load_balance_loss(probabilities, experts[:, 0]),
            ROUTER_Z: router_z_loss(logits),
        }
        return Routing(experts, weights, probabilities, losses)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, noise={self.noise}, "
            f"normalize_weights={self.normalize_weights}"
        )


def expert_capacity(
    num_tokens: int, num_experts: int, top_k: int, factor: float | None, minimum: int
) -> int | None:
    """DeepSpeed's rule, over real tokens only: ``max(ceil(K * N / E * factor), minimum)``.

    Returns:
        C, never more than N; ``None`` (dropless) when ``factor`` is ``None``.
    """
    if factor is None:
        return None
    return min(max(math.ceil(top_k * num_tokens / num_experts * factor), minimum), num_tokens)


def normalized(weights: Tensor) -> Tensor:
    """Scale the last dimension to sum 1; rows of zeros (all choices dropped) stay zeros."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
