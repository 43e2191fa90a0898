"""A norm: the length of the vector (Nguyen and Salazar, 2019), here with a scale per feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaleNorm(nn.Module):
    """Divides by the length of the vector, then multiplies by a learned scale.

    Args:
        d_model: D.
        eps: smallest length.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def draw_parameters(self) -> None:
        """Set the scale to the square root of D. See `ds_seq.models.init`."""
        nn.init.constant_(self.weight, self.weight.numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., D)."""
        length = x.float().norm(dim=-1, keepdim=True).clamp(min=self.eps)
        return (x / length).to(x.dtype) * self.weight
