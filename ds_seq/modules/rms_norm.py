"""Root mean square norm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467).

Shapes: D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RmsNorm(nn.Module):
    """`x / sqrt(mean(x ** 2) + eps) * weight`, over the last dimension.

    The mean and the root are computed in float32. In half precision, a row of zeros therefore gives
    zeros, and squares do not overflow.

    Args:
        d_model: width of the normalized dimension, D.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def draw_parameters(self) -> None:
        """Set the scale to ones, see `ds_seq.models.init`."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., D)."""
        if x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            y: Tensor = _RmsNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return y
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class _RmsNorm(torch.autograd.Function):
    """The norm for a CPU, where torch has no fused kernel: a third of the time.

    The gradient is that of layer norm with a mean of zero, which torch does have a kernel for, but
    without the term of the mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = root.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, inverse, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        no_mean, width = torch.zeros_like(inverse), x.size(-1)
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(),
            x,
            [width],
            no_mean,
            inverse,
            weight,
            None,
            [needs_x, needs_weight, False],
        )
        if needs_x:
            grad_x.add_((grad @ weight).unsqueeze(-1).mul_(inverse).div_(width))
        return grad_x, grad_weight, None
