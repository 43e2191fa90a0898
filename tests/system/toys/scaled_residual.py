"""A residual scheme: the sum weighs what went in (as DeepNorm, Wang et al., 2022)."""

from __future__ import annotations

from torch import Tensor, nn

from ds_seq.modules.residual import Residual


class ScaledResidual(Residual):
    """`norm(scale * x + dropout(f(x)))`.

    Args:
        norm: normalizes the last dimension.
        dropout: probability of dropping an element of f's output in training.
        drop_path: probability that a sentence skips f in training.
        scale: of what went in.
    """

    def __init__(self, norm: nn.Module, dropout: float, drop_path: float, scale: float) -> None:
        super().__init__(norm, dropout, pre_norm=False, drop_path=drop_path)
        self.scale = scale

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Residual`."""
        return super().leave(self.scale * x, y)
