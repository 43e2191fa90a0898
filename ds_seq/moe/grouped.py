"""One linear map per expert over rows that are sorted by expert.

Legend: ``R`` rows, ``E`` experts held here, ``I`` input width, ``O`` output width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.modules.linear import product


class RowGroups:
    """How R sorted rows fall to E experts: on the host for CPU kernels, on the device for the
        others.

    Args:
        counts: (E,) int64, rows of each expert.
        sizes: the same on the host, where it is known without a synchronisation.
    """

    def __init__(self, counts: Tensor, sizes: list[int] | None = None) -> None:
        self.counts = counts
        self.offsets = counts.cumsum(0).to(torch.int32)
        if sizes is None and counts.device.type == "cpu":
            sizes = counts.tolist()
        self.sizes = sizes

    def use_grouped_kernel(self, x: Tensor) -> bool:
        """Whether torch's grouped matmul serves ``x``: bf16 on a GPU, rows of whole 16 bytes."""
        return x.is_cuda and x.dtype == torch.bfloat16 and x.shape[1] % 8 == 0

    def slices(self) -> list[tuple[int, int]]:
        """First and last row of each expert; synchronises when the sizes are not known yet."""
        if self.sizes is None:
            self.sizes = self.counts.tolist()
        bounds, start = [], 0
        for size in self.sizes:
            bounds.append((start, start + size))
            start += size
        return bounds


class _GroupedLinear(torch.autograd.Function):
    """A matrix product per expert that has rows; none for the others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: RowGroups) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return _forward(x, weight, bias, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x = [x.new_empty(0, x.shape[1])]
        grad_weight = torch.empty_like(weight)
        grad_bias = weight.new_empty(weight.shape[0], 1, weight.shape[2])
        for expert, (start, end) in enumerate(ctx.groups.slices()):
            if end == start:  # an idle expert has no gradient, and empty_like left it undefined
                grad_weight[expert].zero_()
                grad_bias[expert].zero_()
                continue
            rows = grad_y[start:end]
            grad_x.append(product(rows, weight[expert]))
            grad_weight[expert] = product(x[start:end].t(), rows.t())
            torch.sum(rows, dim=0, keepdim=True, out=grad_bias[expert])
        return torch.cat(grad_x), grad_weight, grad_bias, None


def _forward(x: Tensor, weight: Tensor, bias: Tensor, groups: RowGroups) -> Tensor:
    parts = [x.new_empty(0, weight.shape[2])]
    for expert, (start, end) in enumerate(groups.slices()):
        if end > start:
            parts.append(product(x[start:end], weight[expert].t(), bias[expert, 0]))
    return torch.cat(parts)


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, groups: RowGroups) -> Tensor:
    """``y[r] = x[r] @ weight[e] + bias[e]`` with e the expert of row r.

    Args:
        x: (R, I), sorted by expert.
        weight: (E, I, O).
        bias: (E, 1, O).
        groups: which rows are whose; the counts sum to R.

    Returns:
        (R, O).
    """
    if groups.use_grouped_kernel(x):
        rows = torch.repeat_interleave(
            torch.arange(len(bias), device=x.device), groups.counts, output_size=x.shape[0]
        )
        return F.grouped_mm(x, weight, offs=groups.offsets) + bias[rows, 0]
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        result: Tensor = _GroupedLinear.apply(x, weight, bias, groups)  # type: ignore[no-untyped-call]
        return result
    return _forward(x, weight, bias, groups)
