"""What a Mixture-of-Experts layer returns beside its hidden states.

NamedTuples, because ZeRO stage 3 finds the tensors of a module's output by walking tuples and
dicts.

Shapes: E experts.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RoutingStats(NamedTuple):
    """Counts of one forward of one MoE layer; detached, on the device of the layer, never
    synchronized."""

    load: Tensor
    """(E,) float32: how many assignments the router made to each expert, dropped ones included."""
    dropped: Tensor
    """() float32: assignments that did not fit the capacity of their expert."""
    entropy: Tensor
    """() float32: sum over tokens of the entropy of the router's distribution, in nats."""
    tokens: Tensor
    """() float32: tokens routed (padding is not)."""
    losses: dict[str, Tensor]
    """() float32 each: a loss of the layer times `tokens`, so that sums over forwards and ranks
    divide by the sum of the tokens."""


class MoeAux(NamedTuple):
    """Losses and statistics of one MoE layer."""

    losses: dict[str, Tensor]
    """Scalar float32 losses by name; see `ds_seq.moe.losses`."""
    stats: RoutingStats
