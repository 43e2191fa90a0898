"""Auxiliary losses of the router, as pure functions of its probabilities.

Every function takes only rows of real tokens: padding never counts.

Shapes: N real tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def load_balance_loss(probabilities: Tensor, counts: Tensor, num_choices: int | Tensor) -> Tensor:
    """`E * sum_e mean(p_e) * counts_e / num_choices`; 1.0 when one of the two is uniform (GShard,
    arXiv:2006.16668).

    Args:
        probabilities: (N, E) of the router, float32.
        counts: (E,) how often each expert was chosen, before any dropping, among `num_choices`
            choices: those of these tokens, or of more than these (the ones of other ranks).
        num_choices: the sum of `counts`.

    Returns:
        Scalar float32; 0 when there is no token.
    """
    num_tokens, num_experts = probabilities.shape
    scale = num_experts / max(num_tokens, 1)
    loss = torch.dot(probabilities.sum(0), counts.to(probabilities.dtype)) * scale
    return loss / (max(num_choices, 1) if isinstance(num_choices, int) else num_choices)


def router_z_loss(log_partition: Tensor) -> Tensor:
    """Mean of the squared log-partition of the router (ST-MoE, arXiv:2202.08906).

    Args:
        log_partition: (N, 1) logarithm of the sum over experts of exp(logit), float32.

    Returns:
        Scalar float32; 0 when there is no token.
    """
    return log_partition.square().sum() / max(log_partition.shape[0], 1)


def budget_loss(share: Tensor, mask: Tensor | None, budget: float) -> Tensor:
    """Distance of the experts' mean share from a budget (CMR of NLLB, arXiv:2207.04672).

    Args:
        share: (B, T) float32, what each token takes from the experts, in [0, 1].
        mask: (B, T) bool, True = real token; `None`: all are.
        budget: in (0, 1].

    Returns:
        Scalar float32; 0 when there is no token.
    """
    if mask is None:
        return (share.mean() - budget).abs()
    num_tokens = mask.sum()
    mean = (share * mask).sum() / num_tokens.clamp(min=1)
    return torch.where(num_tokens > 0, (mean - budget).abs(), mean * 0.0)


def expert_counts(ids: Tensor, num_experts: int) -> Tensor:
    """(E,) int64: how often each expert occurs in `ids` of any shape; stays on the device."""
    flat = ids.reshape(-1)
    zeros = torch.zeros(num_experts, dtype=torch.int64, device=ids.device)
    return zeros.scatter_add_(0, flat, torch.ones_like(flat))
