"""What a Mixture-of-Experts layer returns in addition to its hidden states.

These are NamedTuples, because ZeRO stage 3 finds the tensors of a module's output by walking tuples
and dicts.

Shapes: E experts.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RoutingStats(NamedTuple):
    """Statistics of one call of an MoE layer; detached, on the layer's device, unsynchronized."""

    load: Tensor
    """(E,) float32: number of assignments to each expert, including dropped ones."""
    dropped: Tensor
    """() float32: number of assignments that exceeded the capacity of their expert."""
    entropy: Tensor
    """() float32: entropy of the router's distribution in nats, summed over tokens."""
    tokens: Tensor
    """() float32: number of routed tokens, without padding."""
    losses: dict[str, Tensor]
    """() float32 each: losses of the layer times `tokens`, so that sums over calls and ranks can be
    divided by the sum of the tokens."""


class MoeAux(NamedTuple):
    """Losses and statistics of one MoE layer."""

    losses: dict[str, Tensor]
    """Scalar float32 losses by name; see `ds_seq.moe.losses`."""
    stats: RoutingStats
