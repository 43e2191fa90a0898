"""Positions: a learned bias of attention scores by distance (as Raffel et al., 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REACH = 8


class DistanceBias(nn.Module):
    """A number for each head and distance; all distances from `REACH` on are one.

    Args:
        num_heads: H.
        causal: whether a query sees the past only; then half of the table is never read.
    """

    def __init__(self, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 2 * REACH + 1))

    def draw_parameters(self) -> None:
        """Normal, wide enough for tests to see. See `ds_seq.models.init`."""
        nn.init.normal_(self.weight)

    def forward(self, distances: Tensor) -> Tensor:
        """Bias (..., H, T, S) of distances (..., T, S)."""
        return self.weight[:, distances.clamp(-REACH, REACH) + REACH].movedim(0, -3)
