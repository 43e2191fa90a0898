"""Routing statistics of one forward pass, and a report over several.

Shapes: E experts, N tokens, K choices per token, L losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ds_seq.moe.output import RoutingStats
from ds_seq.moe.router import Routing

_SINGLE = 3  # dropped, entropy, tokens


@torch.no_grad()
def routing_stats(routing: Routing, num_kept: Tensor, losses: Mapping[str, Tensor]) -> RoutingStats:
    """Compute the statistics of one call of a layer.

    Args:
        routing: the router's result before dropping. Invalid choices are not counted.
        num_kept: () number of valid choices that were not dropped.
        losses: scalar losses of the layer by name, including those of a dense branch.
    """
    num_tokens, num_experts = routing.probabilities.shape
    load = routing.probabilities.new_zeros(num_experts, dtype=torch.float32)  # (E,)
    chosen = routing.experts.reshape(-1)  # (N * K,)
    if routing.valid is None:
        ones = load.new_ones(()).expand(chosen.shape)
        num_choices: Tensor | int = chosen.numel()
    else:
        ones = routing.valid.reshape(-1).float()
        num_choices = ones.sum()
    flat = routing.probabilities.reshape(-1)
    logs = flat.clamp(min=torch.finfo(flat.dtype).tiny).log()  # 0 log 0 = 0; twice as fast as entr
    return RoutingStats(
        load=load.scatter_add_(0, chosen, ones),
        dropped=num_choices - num_kept.float(),
        entropy=-torch.dot(flat, logs),
        tokens=load.new_full((), num_tokens),
        losses={name: loss.detach().float() * num_tokens for name, loss in losses.items()},
    )


def packed(stats: RoutingStats) -> Tensor:
    """Return one vector (E + 3 + L,) to sum over steps and ranks; losses are sorted by name."""
    losses = [stats.losses[name] for name in sorted(stats.losses)]
    single = torch.stack([stats.dropped, stats.entropy, stats.tokens, *losses])
    return torch.cat([stats.load, single])


def report(total: Tensor, losses: Sequence[str] = ()) -> dict[str, float | list[float]]:
    """Return readable figures for a sum of `packed` vectors.

    Args:
        total: (E + 3 + L,) sum of vectors.
        losses: names of the L losses, in any order.

    Returns:
        `load`: share of the assignments per expert (sums to 1); `dropped`: share of dropped
        assignments; `entropy`: mean entropy of the router in nats; `load_cv`: standard deviation
        of the load divided by its mean (0 = balanced); and the mean of each loss over tokens.
    """
    names = sorted(losses)
    num_experts = total.numel() - _SINGLE - len(names)
    load = total[:num_experts].double()  # (E,)
    dropped, entropy, tokens, *sums = total[num_experts:].double().tolist()
    assignments = max(load.sum().item(), 1.0)
    tokens = max(tokens, 1.0)
    share = load / assignments
    figures: dict[str, float | list[float]] = {
        "load": share.tolist(),
        "dropped": dropped / assignments,
        "entropy": entropy / tokens,
        "load_cv": (share.std(unbiased=False) / share.mean().clamp(min=1e-12)).item(),
    }
    figures.update((name, value / tokens) for name, value in zip(names, sums, strict=True))
    return figures
