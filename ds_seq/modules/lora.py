"""Low-rank changes of linear maps (LoRA).

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
https://arxiv.org/abs/2106.09685. With a scale of alpha / sqrt(rank) instead of alpha / rank, large
ranks learn as fast as small ones (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732).

A fused map has a change of its own for each part that is changed, as if the parts were separate
maps. The second factor starts at zero, so a new change changes nothing.

Shapes: I inputs, O outputs, P changed parts of a fused map, R rank, W outputs of the changed parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.linear import Linear, linear
from ds_seq.modules.residual import dropout


def lora_scale(alpha: float, rank: int, stabilized: bool) -> float:
    """Return the factor of a change: alpha / rank, or alpha / sqrt(rank) if rank-stabilized."""
    return alpha / (math.sqrt(rank) if stabilized else rank)


class Lora(nn.Module):
    """The change `scale * up(down(dropout(x)))` of a linear map; one for each changed part.

    Args:
        in_features: number of inputs of the map, I.
        widths: outputs of each part of the map; their sum is O.
        changed: whether each part is changed, at least one.
        rank: rank of each change, R.
        scale: factor of the change.
        dropout: probability of dropping an element of the input of the change in training.
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        changed: Sequence[bool],
        rank: int,
        scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        starts = [sum(widths[:part]) for part in range(len(widths))]
        self.parts = [
            (start, width)
            for start, width, is_changed in zip(starts, widths, changed, strict=True)
            if is_changed
        ]
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.down = nn.Parameter(torch.empty(len(self.parts) * rank, in_features))  # (P R, I)
        self.up = nn.Parameter(torch.empty(sum(width for _, width in self.parts), rank))  # (W, R)

    def draw_parameters(self) -> None:
        """Draw the first factor uniformly, as PyTorch draws linear maps; the second is zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the changed output y (..., O) of the map for the input x (..., I)."""
        hidden = linear(dropout(x, self.dropout, self.training), self.down) * self.scale
        changes = hidden.split(self.rank, dim=-1)
        ups = self.up.split([width for _, width in self.parts])
        # not in place: the kernels of large products may return views, which autograd protects
        pieces, end = [], 0
        for (start, width), change, up in zip(self.parts, changes, ups, strict=True):
            if start > end:
                pieces.append(y.narrow(-1, end, start - end))
            end = start + width
            pieces.append(y.narrow(-1, start, width) + linear(change, up))
        if end < y.size(-1):
            pieces.append(y.narrow(-1, end, y.size(-1) - end))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def change(self, num_outputs: int) -> Tensor:
        """Return the change of the weight (O, I), at least in float32.

        Args:
            num_outputs: O.
        """
        dtype = torch.promote_types(self.down.dtype, torch.float32)
        whole = self.down.new_zeros(num_outputs, self.down.size(1), dtype=dtype)
        downs = self.down.to(dtype).split(self.rank)
        ups = self.up.to(dtype).split([width for _, width in self.parts])
        for (start, width), down, up in zip(self.parts, downs, ups, strict=True):
            whole[start : start + width] = up @ down * self.scale
        return whole


class LoraLinear(Linear):
    """A map with a change.

    Args:
        map: the map, whose parameters are taken over under their names.
        lora: its change.
    """

    def __init__(self, map: Linear, lora: Lora) -> None:
        nn.Module.__init__(self)  # without parameters of its own
        self.in_features, self.out_features = map.in_features, map.out_features
        self.widths, self.gain, self.deviation = map.widths, map.gain, map.deviation
        self.weight, self.bias = map.weight, map.bias
        self.lora = lora

    def pack(self, int8: bool = False) -> None:
        """Refuse: a packed copy would not have the change; see `merged`."""
        raise TypeError("a map with a low-rank change cannot be packed; merge the change first")

    @torch.no_grad()
    def merged(self) -> Linear:
        """Return a map without a change whose weight is the changed one."""
        has_bias = self.bias is not None
        map = Linear(self.in_features, self.out_features, has_bias, parts=self.widths)
        map.weight, map.bias = self.weight, self.bias
        map.weight.add_(self.lora.change(self.out_features))
        return map

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """Map x (..., I) to (..., O); `activation` may be `relu`."""
        y: Tensor = self.lora(x, linear(x, self.weight, self.bias))
        return F.relu(y) if activation == "relu" else y
