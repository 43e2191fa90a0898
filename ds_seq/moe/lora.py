"""Low-rank changes of experts; see `ds_seq.modules.lora`.

The changes are added to the weights, so that all kernels of experts work as they are. A training
step therefore costs as much as one that trains the experts themselves; what is saved is the memory
of their optimizer state.

Shapes: E_local experts held here, D model, F feed-forward width, H = F, or 2F with a gated
activation, R rank, P = H / F parts of the first map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.moe.experts import Experts, expert_generator

_STREAM = 500_009  # the factors draw from other random streams than the experts


class ExpertsLora(nn.Module):
    """Changes of both maps of every expert; each expert has factors of its own.

    Args:
        experts: the experts.
        rank: rank of the change of each map, or of each part of the first map, R.
        scale: factor of the changes.
    """

    def __init__(self, experts: Experts, rank: int, scale: float) -> None:
        super().__init__()
        num_local, d_model, ffn_dim = experts.w2.shape
        self.num_parts = experts.w1.size(2) // ffn_dim
        self.scale = scale
        self.seed, self.first_expert = experts.seed + _STREAM, experts.first_expert
        self.down1 = nn.Parameter(torch.empty(num_local, d_model, self.num_parts * rank))
        self.up1 = nn.Parameter(torch.empty(num_local, rank, self.num_parts * ffn_dim))
        self.down2 = nn.Parameter(torch.empty(num_local, rank, ffn_dim))
        self.up2 = nn.Parameter(torch.empty(num_local, d_model, rank))

    @torch.no_grad()
    def draw_parameters(self) -> None:
        """Draw the first factors from (seed, global expert index) only; the others are zero."""
        for local in range(len(self.down1)):
            generator = expert_generator(self.seed, self.first_expert + local)
            for factor, width in (
                (self.down1[local], self.down1.size(1)),
                (self.down2[local], self.down2.size(2)),
            ):
                factor.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        self.up1.zero_()
        self.up2.zero_()

    def forward(self, w1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changed weights of w1 (E_local, D, H) and w2 (E_local, D, F)."""
        downs = self.down1.chunk(self.num_parts, 2)
        ups = self.up1.chunk(self.num_parts, 2)
        change1 = torch.cat([down @ up for down, up in zip(downs, ups, strict=True)], dim=2)
        change2 = self.up2 @ self.down2
        return w1 + change1 * self.scale, w2 + change2 * self.scale
