"""Dense feed-forwards next to the experts, and how the two outputs are combined.

Shapes: B batch, T length, D model.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ds_seq.moe.losses import budget_loss
from ds_seq.names import BUDGET

Losses = dict[str, Tensor]


class Branch(Protocol):
    """`branch(x, routed, mask) -> (y, losses)`."""

    def __call__(self, x: Tensor, routed: Tensor, mask: Tensor | None) -> tuple[Tensor, Losses]:
        """Combine the experts' output with the dense output.

        Args:
            x: (B, T, D) input of the layer.
            routed: (B, T, D) output of the experts.
            mask: (B, T) bool, True at real tokens; `None` if all tokens are real.

        Returns:
            The combined output (B, T, D), and scalar float32 losses by name.
        """
        ...


class ResidualBranch(nn.Module):
    """Mix experts and a dense feed-forward by a learned softmax (PR-MoE, arXiv:2201.05596).

    Args:
        dense: a feed-forward.
        d_model: D.
    """

    def __init__(self, dense: nn.Module, d_model: int) -> None:
        super().__init__()
        self.dense = dense
        self.mix = nn.Linear(d_model, 2)

    def forward(self, x: Tensor, routed: Tensor, mask: Tensor | None) -> tuple[Tensor, Losses]:
        """See `Branch`."""
        dense = self.dense(x).y
        share = self.mix(x).float().softmax(-1).to(x.dtype)  # (B, T, 2)
        return routed * share[..., :1] + dense * share[..., 1:], {}


class SharedBranch(nn.Module):
    """Shared experts for all tokens, as one wider feed-forward (DeepSeekMoE, arXiv:2401.06066).

    Args:
        dense: a feed-forward.
    """

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor, routed: Tensor, mask: Tensor | None) -> tuple[Tensor, Losses]:
        """See `Branch`."""
        dense = self.dense(x).y
        return routed + dense, {}


class ConditionalBranch(nn.Module):
    """Conditional MoE routing (CMR; NLLB, arXiv:2207.04672).

    For each token, a sigmoid gate decides how much of the output comes from the experts. A loss
    keeps the mean share of the experts near a budget.

    Args:
        dense: a feed-forward.
        d_model: D.
        budget: target of the experts' mean share.
        dropout: probability of setting a token's share to 0 in training.
    """

    def __init__(self, dense: nn.Module, d_model: int, budget: float, dropout: float) -> None:
        super().__init__()
        self.dense = dense
        self.mix = nn.Linear(d_model, 1)
        self.budget, self.dropout = budget, dropout

    def forward(self, x: Tensor, routed: Tensor, mask: Tensor | None) -> tuple[Tensor, Losses]:
        """See `Branch`; returns the loss `budget`."""
        dense = self.dense(x).y
        share = self.mix(x).float().sigmoid()  # (B, T, 1)
        if self.training and self.dropout > 0.0:
            share = share * (torch.rand_like(share) >= self.dropout)
        loss = budget_loss(share.squeeze(-1), mask, self.budget)
        share = share.to(x.dtype)
        return routed * share + dense * (1.0 - share), {BUDGET: loss}

    def extra_repr(self) -> str:
        return f"budget={self.budget}, dropout={self.dropout}"
