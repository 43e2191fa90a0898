"""A norm: root mean square (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """Divides by the root mean square, then multiplies by a learned scale.

    Args:
        d_model: D.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def draw_parameters(self) -> None:
        """Ones. See `ds_seq.models.init`."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., D)."""
        squares = x.float().square().mean(-1, keepdim=True)
        return (x * (squares + self.eps).rsqrt()).to(x.dtype) * self.weight
