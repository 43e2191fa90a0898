"""One linear map per expert over rows sorted by expert, in a single GPU kernel.

Shapes: R rows, E experts held by this rank, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROW_BYTES = 16  # the grouped kernel loads matrices in blocks of this size


def fits_grouped_kernel(device_type: str, dtype: torch.dtype, widths: Iterable[int]) -> bool:
    """Return whether torch's grouped matmul supports products of matrices of these widths.

    It needs bf16 on a GPU, and rows whose size is a multiple of 16 bytes.

    Args:
        device_type: device type of the matrices.
        dtype: data type of all matrices.
        widths: row length of each matrix in memory.
    """
    if device_type != "cuda" or dtype != torch.bfloat16:
        return False
    return all(width * dtype.itemsize % _ROW_BYTES == 0 for width in widths)


def use_grouped_kernel(x: Tensor, *weights: Tensor) -> bool:
    """Return whether torch's grouped matmul supports `x` and all weights it is multiplied by.

    Args:
        x: (R, I).
        weights: contiguous tensors (E, ..., ...). Every width of a product's input, output and
            gradients must be the last dimension of `x` or of one of these.
    """
    widths = (matrix.shape[-1] for matrix in (x, *weights))
    return fits_grouped_kernel(x.device.type, x.dtype, widths)


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
    """Compute `y[r] = x[r] @ weight[e] + bias[e]`, e the expert of row r, in one kernel.

    Args:
        x: (R, I), sorted by expert; see `use_grouped_kernel`.
        weight: (E, I, O); may be a transposed view.
        bias: (E, 1, O), or None.
        counts: (E,) int64 on the device, number of rows per expert; their sum is R.

    Returns:
        (R, O).
    """
    ends = counts.cumsum(0).to(torch.int32)  # end of each expert's rows
    y: Tensor = F.grouped_mm(x, weight, offs=ends)
    if bias is None:
        return y
    experts = torch.arange(len(bias), device=x.device)
    of_row = torch.repeat_interleave(experts, counts, output_size=x.shape[0])
    result: Tensor = _AddBias.apply(y, bias, of_row)  # type: ignore[no-untyped-call]
    return result


class _AddBias(torch.autograd.Function):
    """`y[r] + bias[of_row[r]]`, with the gradient of the bias as a matrix product.

    Autograd's gradient of the indexing sorts the rows and adds the rows of an expert one after the
    other, which took 28 of 121 ms of device time in a training step of 8 experts on an NVIDIA
    H200.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, of_row: Tensor) -> Tensor:
        """Add `bias` (E, 1, O) of the experts `of_row` (R,) int64 to `y` (R, O)."""
        ctx.save_for_backward(of_row)
        ctx.num_experts = len(bias)
        return y + bias[of_row, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_bias = None
        if ctx.needs_input_grad[1]:
            (of_row,) = ctx.saved_tensors
            grad_bias = sum_by_expert(grad, of_row, ctx.num_experts).unsqueeze(1)
        return grad if ctx.needs_input_grad[0] else None, grad_bias, None


def sum_by_expert(rows: Tensor, of_row: Tensor, num_experts: int) -> Tensor:
    """Sum the rows of each expert; rows in half precision are summed in float32.

    Args:
        rows: (R, O).
        of_row: (R,) int64, the expert of each row.
        num_experts: number of experts, E.

    Returns:
        (E, O), in the dtype of `rows`.
    """
    experts = torch.arange(num_experts, device=rows.device)
    chosen = (experts.unsqueeze(1) == of_row).to(rows.dtype)  # (E, R) of zeros and ones
    if rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16):
        # E is small and R large: the kernel splits R, and would add the partial sums in half
        # precision if its result were in half precision
        return torch.mm(chosen, rows, out_dtype=torch.float32).to(rows.dtype)
    return chosen @ rows
