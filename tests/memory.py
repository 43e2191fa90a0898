"""Real failures of the allocator: the kernel refuses memory beyond a limit of the process."""

from __future__ import annotations

import resource
from pathlib import Path

import torch
from torch import Tensor, nn

_PAGE = resource.getpagesize()
_PER_ROW = 1 << 40
"""Bytes that a row needs, never written to.

The C library keeps freed memory, and a forked process has all that its parent has kept: gigabytes,
after other tests. A need must be greater than that and the limit together.
"""
_SLACK = 1 << 28  # other threads may need some meanwhile


def need(rows: int, room: int) -> None:
    """Allocate memory for `rows` and free it, if there is no room for so many.

    Memory that was there for fewer rows would be kept by the allocator, and found again.

    Raises:
        RuntimeError: PyTorch's own, if `rows` is more than `room`.
    """
    if rows <= room:
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _SLACK, hard))
    try:
        torch.empty(rows * _PER_ROW, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _NeedInBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, value: Tensor, rows: int, room: int) -> Tensor:  # type: ignore[no-untyped-def,override]
        context.sizes = rows, room
        return value.view_as(value)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def,override]
        need(*context.sizes)
        return gradient, None, None


def hungry(value: Tensor, rows: int, room: int, in_backward: bool) -> Tensor:
    """Return `value`; allocate in this or in the backward pass, as `need` does."""
    if in_backward:
        result: Tensor = _NeedInBackward.apply(value, rows, room)  # type: ignore[no-untyped-call]
        return result
    need(rows, room)
    return value


def make_hungry(module: nn.Module, room: int, in_backward: bool) -> None:
    """Let the output of a module with rows in its first dimension need memory for each row."""

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return hungry(output, output.shape[0], room, in_backward) if module.training else output

    module.register_forward_hook(hook)
