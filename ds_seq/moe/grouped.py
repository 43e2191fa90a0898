"""Rows that are sorted by expert, and one linear map per expert over them.

Legend: ``R`` rows, ``E`` experts held here, ``I`` input width, ``O`` output width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RowGroups:
    """How R sorted rows fall to E experts: on the device for kernels, on the host for loops.

    Args:
        counts: (E,) int64, rows of each expert.
    """

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts

    def offsets(self) -> Tensor:
        """(E,) int32: the row behind the last one of each expert."""
        return self.counts.cumsum(0).to(torch.int32)

    def use_grouped_kernel(self, x: Tensor) -> bool:
        """Whether torch's grouped matmul serves ``x``: bf16 on a GPU, rows of whole 16 bytes."""
        return x.is_cuda and x.dtype == torch.bfloat16 and x.shape[1] % 8 == 0

    def slices(self) -> list[tuple[int, int]]:
        """First row of each expert and the one behind its last; waits for the device."""
        bounds, start = [], 0
        for size in self.counts.tolist():
            bounds.append((start, start + size))
            start += size
        return bounds


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, groups: RowGroups) -> Tensor:
    """``y[r] = x[r] @ weight[e] + bias[e]`` with e the expert of row r, in one kernel.

    Args:
        x: (R, I), sorted by expert; see `RowGroups.use_grouped_kernel`.
        weight: (E, I, O); a transposed view is as good.
        bias: (E, 1, O).
        groups: which rows are whose; the counts sum to R.

    Returns:
        (R, O).
    """
    experts = torch.arange(len(bias), device=x.device)
    of_row = torch.repeat_interleave(experts, groups.counts, output_size=x.shape[0])
    return F.grouped_mm(x, weight, offs=groups.offsets()) + bias[of_row, 0]
