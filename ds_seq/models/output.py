"""What models return. Plain named tuples: ZeRO-3's hooks look into tuples and dicts only.

Shapes: B batch, S source length, T target length, N selected rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from ds_seq.moe.output import MoeAux, RoutingStats


class EncoderOutput(NamedTuple):
    """The encoded source."""

    hidden: Tensor
    """(B, S, D)."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    tag: Tensor | None
    """(B, D) embedding of the first source token, where feed-forwards are routed by it."""
    gate_losses: dict[str, Tensor]
    """See `ModelOutput`; of the encoder only."""
    moe_stats: list[RoutingStats]
    """See `ModelOutput`; of the encoder only."""


class ModelOutput(NamedTuple):
    """Scores of the target, and what the gates of a sparse model want to say."""

    logits: Tensor
    """(B, T, V), or (N, V) when rows were selected."""
    gate_losses: dict[str, Tensor]
    """Scalar fp32 losses by name, summed over MoE layers; empty for a dense model."""
    moe_stats: list[RoutingStats]
    """One for each MoE layer, encoder first; empty for a dense model."""


def sum_losses(losses: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Add losses of the same name."""
    total: dict[str, Tensor] = {}
    for by_name in losses:
        for name, loss in by_name.items():
            total[name] = total[name] + loss if name in total else loss
    return total


def sum_aux(aux: Iterable[MoeAux]) -> dict[str, Tensor]:
    """Add the losses of several MoE layers by name."""
    return sum_losses(layer.losses for layer in aux)
