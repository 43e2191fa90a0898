"""Auxiliary losses of the router, as pure functions of its probabilities.

All functions take rows of real tokens only: padding never counts.

Shapes: N real tokens, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def load_balance_loss(probabilities: Tensor, counts: Tensor, num_choices: int | Tensor) -> Tensor:
    """Return `E * sum_e mean(p_e) * counts_e / num_choices` (GShard, arXiv:2006.16668).

    It is 1.0 if the probabilities or the counts are uniform.

    Args:
        probabilities: (N, E) float32, the router's distribution.
        counts: (E,) how often each expert was chosen before dropping, by these tokens or by these
            and other ranks' tokens.
        num_choices: sum of `counts`.

    Returns:
        Scalar float32; 0 if there are no tokens.
    """
    num_tokens, num_experts = probabilities.shape
    scale = num_experts / max(num_tokens, 1)
    loss = torch.dot(probabilities.sum(0), counts.to(probabilities.dtype)) * scale
    return loss / (max(num_choices, 1) if isinstance(num_choices, int) else num_choices)


def router_z_loss(log_partition: Tensor) -> Tensor:
    """Return the mean squared log-partition of the router (ST-MoE, arXiv:2202.08906).

    Args:
        log_partition: (N, 1) logarithm of the sum over experts of exp(logit), float32.

    Returns:
        Scalar float32; 0 if there are no tokens.
    """
    return log_partition.square().sum() / max(log_partition.shape[0], 1)


def budget_loss(share: Tensor, mask: Tensor | None, budget: float) -> Tensor:
    """Return the distance of the experts' mean share from a budget (CMR, arXiv:2207.04672).

    Args:
        share: (B, T) float32 in [0, 1], share of the experts in each token's output.
        mask: (B, T) bool, True at real tokens; `None` if all tokens are real.
        budget: target of the mean share, in (0, 1].

    Returns:
        Scalar float32; 0 if there are no tokens.
    """
    if mask is None:
        return (share.mean() - budget).abs()
    num_tokens = mask.sum()
    mean = (share * mask).sum() / num_tokens.clamp(min=1)
    return torch.where(num_tokens > 0, (mean - budget).abs(), mean * 0.0)


def expert_counts(ids: Tensor, num_experts: int) -> Tensor:
    """Count how often each expert occurs in `ids` of any shape: (E,) int64, on the device."""
    flat = ids.reshape(-1)
    zeros = torch.zeros(num_experts, dtype=torch.int64, device=ids.device)
    return zeros.scatter_add_(0, flat, torch.ones_like(flat))
