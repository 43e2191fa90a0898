"""Auxiliary losses of the router, as pure functions of its probabilities.

Every function takes only rows of real tokens: padding never counts.
Legend: ``N`` real tokens, ``E`` experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOAD_BALANCE = "load_balance"
ROUTER_Z = "router_z"
GATE_LOSSES = (LOAD_BALANCE, ROUTER_Z)


def load_balance_loss(probabilities: Tensor, first_choice: Tensor) -> Tensor:
    """``E * sum_e mean(p_e) * mean(chosen_e)``; 1.0 when both are uniform (GShard,
    arXiv:2006.16668).

    Args:
        probabilities: (N, E) softmax of the router, float32.
        first_choice: (N,) expert of each token before any dropping.

    Returns:
        Scalar float32; 0 when there is no token.
    """
    num_tokens, num_experts = probabilities.shape
    chosen = expert_counts(first_choice, num_experts).to(probabilities.dtype)
    scale = num_experts / max(num_tokens, 1) ** 2
    return scale * torch.dot(probabilities.sum(0), chosen)


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean of the squared log-partition of the router (ST-MoE, arXiv:2202.08906).

    Args:
        logits: (N, E) router logits, float32.

    Returns:
        Scalar float32; 0 when there is no token.
    """
    return logits.logsumexp(-1).square().sum() / max(logits.shape[0], 1)


def expert_counts(ids: Tensor, num_experts: int) -> Tensor:
    """(E,) int64: how often each expert occurs in ``ids`` of any shape; stays on the device."""
    flat = ids.reshape(-1)
    zeros = torch.zeros(num_experts, dtype=torch.int64, device=ids.device)
    return zeros.scatter_add_(0, flat, torch.ones_like(flat))
