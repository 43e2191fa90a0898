"""The residual connection around a sub-layer, with its norm and dropout."""

from __future__ import annotations

from torch import Tensor, nn

from ds_seq.modules.dropout import add_dropout


class Residual(nn.Module):
    """Pre-norm: `x + dropout(f(norm(x)))`. Post-norm: `norm(x + dropout(f(x)))`.

    The sub-layer f stays outside (it may return more than a tensor): call `enter` before it and
    `leave` after it.

    Args:
        norm: normalizes the last dimension.
        dropout: probability of dropping an element of f's output in training.
        pre_norm: normalize f's input instead of the sum (Xiong et al., 2020).
    """

    def __init__(self, norm: nn.Module, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.norm = norm

    def enter(self, x: Tensor) -> Tensor:
        """What the sub-layer sees of x (B, T, D)."""
        normed: Tensor = self.norm(x) if self.pre_norm else x
        return normed

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """Join x (B, T, D) with the sub-layer's output y (B, T, D)."""
        x = add_dropout(x, y, self.dropout, self.training)
        joined: Tensor = x if self.pre_norm else self.norm(x)
        return joined
