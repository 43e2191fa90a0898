"""Routing statistics of one forward, and how statistics of several forwards become a report.

Legend: ``E`` experts, ``N`` tokens, ``K`` experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_seq.moe.losses import expert_counts
from ds_seq.moe.output import RoutingStats


@torch.no_grad()
def routing_stats(probabilities: Tensor, experts: Tensor, num_kept: Tensor) -> RoutingStats:
    """Count one forward.

    Args:
        probabilities: (N, E) of the gate.
        experts: (N, K) chosen, before dropping.
        num_kept: () how many of the N * K assignments were carried out.
    """
    load = expert_counts(experts, probabilities.shape[1]).float()
    return RoutingStats(
        load=load,
        dropped=experts.numel() - num_kept.float(),
        entropy=torch.special.entr(probabilities).sum(),
        tokens=load.new_full((), probabilities.shape[0]),
    )


def packed(stats: RoutingStats) -> Tensor:
    """One vector (E + 3,) that can be summed over steps and ranks."""
    return torch.cat([stats.load, torch.stack([stats.dropped, stats.entropy, stats.tokens])])


def report(total: Tensor) -> dict[str, float | list[float]]:
    """Readable figures of a sum of `packed` vectors.

    Returns:
        ``load``: share of the assignments per expert (sums to 1); ``dropped``: share of the
        assignments dropped; ``entropy``: mean entropy of the gate in nats; ``load_cv``: standard
        deviation of the load over its mean (0 = balanced).
    """
    load, (dropped, entropy, tokens) = total[:-3].double(), total[-3:].double().tolist()
    assignments = max(load.sum().item(), 1.0)
    share = load / assignments
    return {
        "load": share.tolist(),
        "dropped": dropped / assignments,
        "entropy": entropy / max(tokens, 1.0),
        "load_cv": (share.std(unbiased=False) / share.mean().clamp(min=1e-12)).item(),
    }
