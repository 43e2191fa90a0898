"""Linear maps whose weights have a direction and a length, learned apart.

Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868. The length belongs to one output: a row
of the weight is its direction, of any length, times `length / |row|`.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.modules.linear import Linear, linear
from ds_seq.modules.packed import pack


class NormedLinear(Linear):
    """A linear map with weight norm; the arguments are those of `Linear`."""

    _folded: Tensor | None = None

    def __init__(
        self, in_features: int, out_features: int, *, deviation: float | None = None
    ) -> None:
        super().__init__(in_features, out_features, deviation=deviation)
        self.length = nn.Parameter(torch.empty(out_features))

    def draw_parameters(self) -> None:
        """Draw a weight as a map without weight norm does, and take its lengths."""
        super().draw_parameters()
        with torch.no_grad():
            self.length.copy_(self.weight.norm(dim=1))

    def pack(self, int8: bool = False) -> None:
        """Compute the weight once, and use a packed copy from now on; see `Linear.pack`."""
        with torch.no_grad():
            self._folded = self.effective_weight()
        self._packed = pack(self._folded, self.bias, int8)

    def effective_weight(self) -> Tensor:
        """Return the weight (O, I) that multiplies inputs; its lengths are taken in float32."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.length.to(wide) / self.weight.to(wide).norm(dim=1)
        return self.weight * scale[:, None].to(self.weight.dtype)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """Map x (..., I) to (..., O); `activation` may be `relu`."""
        weight = self.effective_weight() if self._folded is None else self._folded
        return linear(x, weight, self.bias, activation, self._packed)
