"""The gradient of the logits between a loss's forward, which writes it, and its backward.

Legend: ``N`` real target tokens, ``R`` rows at a time, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class LogitGradient:
    """An (N, V) tensor that is filled a few rows at a time, in the dtype of the logits.

    Float16 ends at 6e-8, and a loss scale comes only in the backward, too late for what has become
    0. So there everything is kept multiplied by a power of two.

    Args:
        logits: whose shape and dtype the gradient has.
        bound: the largest element there can be.
    """

    def __init__(self, logits: Tensor, bound: float) -> None:
        self.buffer = torch.empty_like(logits, memory_format=torch.contiguous_format)
        self.scale, self._largest = 1.0, math.inf
        if logits.dtype == torch.float16:
            self._largest = torch.finfo(torch.float16).max
            self.scale = 2.0 ** math.floor(math.log2(self._largest / max(bound, 1e-3)))

    def place(self, rows: slice) -> Tensor | None:
        """(R, V) float32 memory of these rows, or None where they are kept in another dtype."""
        return self.buffer[rows] if self.buffer.dtype == torch.float32 else None

    def put(self, rows: slice, block: Tensor) -> None:
        """Take in the (R, V) float32 gradient of some rows."""
        if self.buffer.dtype != torch.float32:  # else it was computed in its place
            self.buffer[rows] = self._packed(block)

    def put_affine(self, rows: slice, block: Tensor, weight: float, shift: float) -> None:
        """Take in ``weight * block + shift``, (R, V) float32, in one pass over the memory.

        No element may be beyond the bound: nothing is cut off here.
        """
        offset = torch.tensor(shift * self.scale)  # on the host: goes along with the kernel's call
        torch.add(offset, block, alpha=weight * self.scale, out=self.buffer[rows])

    def add(self, rows: Tensor, block: Tensor) -> None:
        """Add to the rows of these (R,) numbers."""
        if self.buffer.dtype == torch.float32:
            self.buffer.index_add_(0, rows, block)
            return
        kept = self.buffer.index_select(0, rows).float().div_(self.scale)
        self.buffer[rows] = self._packed(block.add_(kept)).to(self.buffer.dtype)

    def _packed(self, block: Tensor) -> Tensor:
        if self.buffer.dtype != torch.float16:
            return block
        return block.mul_(self.scale).clamp_(-self._largest, self._largest)


def multiply_in_place(gradient: Tensor, factor: Tensor, slices: Iterable[slice]) -> None:
    """``gradient *= factor`` in float32 arithmetic, whatever the precision of the gradient.

    The factor alone, which a product of a tensor and a scalar would round to float16, may be beyond
    the range of half precision.

    Args:
        gradient: (N, V).
        factor: float32 scalar.
        slices: rows to take at a time where a float32 copy has to be made.
    """
    if gradient.dtype in (torch.float32, torch.float64):
        gradient.mul_(factor)
    elif gradient.is_cuda:
        # as a matrix the factor decides the dtype of the arithmetic, and the kernel converts each
        # element on its way; on a CPU the same call makes a float32 copy of everything
        torch.mul(gradient, factor.view(1, 1), out=gradient)
    else:
        for rows in slices:
            gradient[rows] = gradient[rows].float().mul_(factor)
