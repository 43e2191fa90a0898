"""The feed-forward networks of experts with few rows each, by kernels in C (`native_experts.c`).

With 64 experts and 2,048 tokens an expert has 32 rows. A third of the time then goes into copies of
weights into the layout of oneDNN, and of gradients to their place, and new numbers of rows need new
kernels. The kernels in C read and write each weight once, for any number of rows, and one call
computes all experts.

They are compiled when ds_seq is installed, like those of `ds_seq.modules.native`, and run on CPUs
with AVX-512. A result does not depend on the other rows.

Shapes: E experts, R rows sorted by expert, D model, F feed-forward width, H = F, or 2F if the first
map returns gate and value, I inputs and O outputs of a map.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.modules.activations import Activation
from ds_seq.modules.native import LANES, library

_MOST_ROWS = 512
"""Mean number of rows of an expert up to which the kernels are as fast as oneDNN, or faster."""


def has_kernels() -> bool:
    """Return whether the kernels are compiled, and suit the processor."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and library() is not None


def serves(x: Tensor, *weights: Tensor) -> bool:
    """Return whether the kernels read these tensors, and suit the number of rows.

    Args:
        x: rows of all experts (R, D).
        weights: (E, ..., ...) each.
    """
    return (
        0 < len(x) <= _MOST_ROWS * len(weights[0])
        and all(
            each.dtype == torch.float32
            and each.device.type == "cpu"
            and each.is_contiguous()
            and each.size(-1) % LANES == 0
            for each in (x, *weights)
        )
        and not torch.is_autocast_enabled("cpu")
    )


class _Part(NamedTuple):
    """The experts that a thread computes, and their rows."""

    experts: slice
    rows: slice


def _parts(counts: Tensor) -> list[_Part]:
    """Divide experts among the threads, with about as many rows each."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [_Part(slice(0, len(counts)), slice(0, None))]
    ends = counts.cumsum(0)
    steps = torch.arange(1, threads) * (int(ends[-1]) / threads)
    cuts = [0, *torch.searchsorted(ends.double(), steps.double()).tolist(), len(counts)]
    starts = [0, *ends.tolist()]
    return [
        _Part(slice(first, last), slice(starts[first], starts[last]))
        for first, last in zip(cuts, cuts[1:], strict=False)
        if last > first
    ]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "experts")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child does not have its threads


def _over_parts(counts: Tensor, call: Callable[[_Part], None]) -> None:
    parts = _parts(counts)
    if len(parts) == 1:
        call(parts[0])
        return
    list(_pool(torch.get_num_threads()).map(call, parts))  # a kernel releases Python's lock


def _address(tensor: Tensor | None, part: slice) -> int | None:
    return None if tensor is None else tensor[part].data_ptr()


def _kernels() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None
    return kernels


def rows_by_weights(
    x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor, relu: bool = False
) -> Tensor:
    """Return `x[r] @ weight[e] + bias[e]` (R, O), or its positive part, e the expert of row r.

    Args:
        x: (R, I), sorted by expert.
        weight: (E, I, O).
        bias: (E, 1, O), or None.
        counts: (E,) int64, number of rows per expert.
        relu: whether negative results become zero.
    """
    _, inputs, outputs = weight.shape
    y = x.new_empty(len(x), outputs)

    def call(part: _Part) -> None:
        read = [_address(x, part.rows), _address(weight, part.experts)]
        read += [_address(bias, part.experts), _address(counts, part.experts)]
        sizes = part.experts.stop - part.experts.start, inputs, outputs, int(relu)
        _kernels().ds_seq_rows_by_weights(*read, *sizes, _address(y, part.rows))

    _over_parts(counts, call)
    return y


def rows_by_turned_weights(
    x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor
) -> Tensor:
    """Return `x[r] @ weight[e].T + bias[e]` (R, O), e the expert of row r.

    Args:
        x: (R, I), sorted by expert.
        weight: (E, O, I).
        bias: (E, 1, O), or None.
        counts: (E,) int64, number of rows per expert.
    """
    _, outputs, inputs = weight.shape
    y = x.new_empty(len(x), outputs)

    def call(part: _Part) -> None:
        read = [_address(x, part.rows), _address(weight, part.experts)]
        read += [_address(bias, part.experts), _address(counts, part.experts)]
        sizes = part.experts.stop - part.experts.start, inputs, outputs
        _kernels().ds_seq_rows_by_turned_weights(*read, *sizes, _address(y, part.rows))

    _over_parts(counts, call)
    return y


def gradients(a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
    """Return `a[rows of e].T @ b[rows of e]` for all experts e, (E, I, O).

    Args:
        a: (R, I), sorted by expert.
        b: (R, O).
        counts: (E,) int64, number of rows per expert.
    """
    g = a.new_empty(len(counts), a.size(1), b.size(1))

    def call(part: _Part) -> None:
        read = (_address(a, part.rows), _address(b, part.rows), _address(counts, part.experts))
        sizes = part.experts.stop - part.experts.start, a.size(1), b.size(1)
        _kernels().ds_seq_gradients(*read, *sizes, _address(g, part.experts))

    _over_parts(counts, call)
    return g


def sums_of_rows(x: Tensor, counts: Tensor) -> Tensor:
    """Return the sum of the rows (R, O) of each expert, (E, 1, O)."""
    y = x.new_empty(len(counts), 1, x.size(1))
    sizes = len(counts), x.size(1)
    _kernels().ds_seq_sums_of_rows(x.data_ptr(), counts.data_ptr(), *sizes, y.data_ptr())
    return y


def few_rows(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    noise: Tensor | None,
    activation: Activation,
    counts: Tensor,
) -> Tensor:
    """Compute what `ds_seq.moe.expert_loop.expert_loop` computes, with the same arguments.

    The kernels must exist (`has_kernels`) and serve x, w1 and w2 (`serves`).
    """
    y: Tensor = _FewRows.apply(x, w1, b1, w2, b2, noise, activation, counts)  # type: ignore[no-untyped-call]
    return y


class _FewRows(torch.autograd.Function):
    """Stores one tensor of the hidden layer; the rest is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        noise: Tensor | None,
        activation: Activation,
        counts: Tensor,
    ) -> Tensor:
        kept = rows_by_weights(x, w1, b1, counts, activation.fused == "relu")  # (R, H)
        ctx.save_for_backward(x, w1, w2, noise, kept, counts)
        ctx.activation, ctx.has_biases = activation, b1 is not None
        return rows_by_turned_weights(_hidden(kept, noise, activation), w2, b2, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, noise, kept, counts = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grads: list[Tensor | None] = [None] * 4
        is_trained = ctx.needs_input_grad[1]
        if is_trained:
            grads[2] = gradients(grad_y, _hidden(kept, noise, ctx.activation), counts)
        grad_inner = rows_by_weights(grad_y, w2, None, counts)  # (R, F)
        if noise is not None:
            grad_inner.mul_(noise)
        grad_inner = ctx.activation.backward(grad_inner, kept)  # (R, H)
        if is_trained:
            grads[0] = gradients(x, grad_inner, counts)
            if ctx.has_biases:
                grads[1], grads[3] = sums_of_rows(grad_inner, counts), sums_of_rows(grad_y, counts)
        return (rows_by_turned_weights(grad_inner, w1, None, counts), *grads, None, None, None)


def _hidden(kept: Tensor, noise: Tensor | None, activation: Activation) -> Tensor:
    """Return the hidden layer (R, F) from what its first map has returned."""
    hidden = kept if activation.rest is None else activation.rest(kept)
    return hidden if noise is None else hidden * noise
