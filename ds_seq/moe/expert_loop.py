"""The feed-forward networks of several experts, computed one after the other, which suits CPUs.

One autograd function covers the whole network: intermediate results of an expert stay in the cache
until the next operation needs them, there is no tensor as wide as the hidden layer over all rows,
and the forward stores only the part of the hidden layer from which the rest is cheap to recompute.

The number of rows of an expert changes with every batch, and oneDNN takes as long to prepare a
matrix product of a new shape as to compute it (0.4 ms for 300 x 256 x 1024 on two threads). So
experts work on windows: their own rows and some neighboring rows, rounded up to one of few sizes.
The results for the neighboring rows are cut off or set to zero.

Shapes: R rows sorted by expert, R_e rows of one expert's window, D model, F
feed-forward width, H = F, or 2F if the first map returns gate and value, E experts
held here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.modules.activations import Activation
from ds_seq.modules.linear import product
from ds_seq.modules.packed import Packed


class _Net(NamedTuple):
    """Parameters of all experts, with the shapes of `Experts`."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None


def bias_of(biases: Tensor | None, expert: int) -> Tensor | None:
    """Return the bias (O,) of one expert; None if there are no biases (E, 1, O)."""
    return None if biases is None else biases[expert, 0]


class PackedNet(NamedTuple):
    """Both maps of an expert, packed by `ds_seq.modules.packed`."""

    up: Packed | None
    down: Packed | None


NOT_PACKED = PackedNet(None, None)


class _Window(NamedTuple):
    """The rows that an expert computes, and which of them belong to it."""

    rows: slice
    """The window, among all R rows."""
    core: slice
    """The expert's own rows, within the window."""
    margins: tuple[slice, slice]
    """The rest of the window: the rows before and after the expert's own."""


_STEPS = 16  # window sizes per power of two: at most 1/16 of the rows are neighboring rows


_Windows = list[_Window | None]
"""The window of each expert; `None` for an idle one."""


def _windows(counts: Tensor, num_rows: int) -> _Windows:
    windows: _Windows = []
    start = 0
    for size in counts.tolist():  # waits for the device
        windows.append(_window(start, start + size, num_rows) if size else None)
        start += size
    return windows


def _window(start: int, end: int, num_rows: int) -> _Window:
    size = end - start
    step = max(1 << (size.bit_length() - 1), _STEPS) // _STEPS
    size = min(-(-size // step) * step, num_rows)
    first = min(start, num_rows - size)
    core = slice(start - first, end - first)
    margins = (slice(0, core.start), slice(core.stop, size))
    return _Window(slice(first, first + size), core, margins)


def _clear(tensor: Tensor, window: _Window) -> Tensor:
    """Set the neighboring rows of a window (R_e, ...) to zero."""
    for rows in window.margins:
        if rows.stop > rows.start:
            tensor[rows].zero_()
    return tensor


class _ExpertLoop(torch.autograd.Function):
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
        windows: _Windows,
    ) -> Tensor:
        inner: list[Tensor] = [x.new_empty(0)] * len(w1)
        y = _forward(x, _Net(w1, b1, w2, b2), noise, activation, windows, inner)
        ctx.save_for_backward(x, w1, w2, noise, *inner)
        ctx.activation, ctx.windows = activation, windows
        ctx.has_biases = b1 is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, noise, *inner = ctx.saved_tensors
        activation: Activation = ctx.activation
        grad_x = [x.new_empty(0, x.shape[1])]
        grads = None
        if ctx.needs_input_grad[1]:  # else frozen
            grads = _empty_gradients(w1, w2, ctx.has_biases)
        for expert, window in enumerate(ctx.windows):
            if window is None:  # idle
                _clear_gradients(grads, expert)
                continue
            grad, kept = grad_y[window.rows], inner[expert]
            grad_inner = product(grad, w2[expert].t())  # (R_e, F), with respect to the hidden layer
            hidden = kept if activation.rest is None else activation.rest(kept)
            if noise is not None:
                grad_inner.mul_(noise[window.rows])
                hidden = hidden * noise[window.rows]
            if grads is not None:
                grads.w2[expert] = product(grad.t(), hidden.t())
                _sum_rows(grad[window.core], grads.b2, expert)
            grad_inner = _clear(activation.backward(grad_inner, kept), window)  # (R_e, H)
            grad_x.append(product(grad_inner, w1[expert])[window.core])
            if grads is not None:
                grads.w1[expert] = product(x[window.rows].t(), grad_inner.t())
                _sum_rows(grad_inner, grads.b1, expert)
        return (torch.cat(grad_x), *(grads or [None] * 4), None, None, None)


def _clear_gradients(grads: _Net | None, expert: int) -> None:
    """Set the gradients of one expert, which are uninitialized, to zero."""
    for grad in grads or ():
        if grad is not None:
            grad[expert].zero_()


def _sum_rows(rows: Tensor, grads: Tensor | None, expert: int) -> None:
    """Store the gradient of an expert's bias, if it has one."""
    if grads is not None:
        torch.sum(rows, dim=0, keepdim=True, out=grads[expert])


def _empty_gradients(w1: Tensor, w2: Tensor, has_biases: bool) -> _Net:
    return _Net(
        torch.empty_like(w1),
        w1.new_empty(w1.shape[0], 1, w1.shape[2]) if has_biases else None,
        torch.empty_like(w2),
        w2.new_empty(w2.shape[0], 1, w2.shape[1]) if has_biases else None,
    )


def _forward(
    x: Tensor,
    net: _Net,
    noise: Tensor | None,
    activation: Activation,
    windows: _Windows,
    inner: list[Tensor] | None,
    packed: Sequence[PackedNet] | None = None,
) -> Tensor:
    """Apply all experts to their rows; stores in `inner` what the backward needs."""
    parts = [x.new_empty(0, x.shape[1])]  # in order, as rows are sorted by expert
    for expert, window in enumerate(windows):
        if window is None:
            continue
        maps = NOT_PACKED if packed is None else packed[expert]
        w1, w2 = net.w1[expert], net.w2[expert]
        b1, b2 = bias_of(net.b1, expert), bias_of(net.b2, expert)
        kept = product(x[window.rows], w1.t(), b1, activation.fused, maps.up)  # (R_e, H)
        if inner is not None:
            # zeros stay zeros in the hidden layer: neighboring rows add no gradient
            inner[expert] = _clear(kept, window)
        hidden = kept if activation.rest is None else activation.rest(kept)  # (R_e, F)
        if noise is not None:
            hidden = hidden * noise[window.rows]
        parts.append(product(hidden, w2, b2, packed=maps.down)[window.core])
    return torch.cat(parts)


def expert_loop(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    noise: Tensor | None,
    activation: Activation,
    counts: Tensor,
    packed: Sequence[PackedNet] | None = None,
) -> Tensor:
    """Compute `y[r] = (act(x[r] w1[e] + b1[e]) * noise[r]) w2[e]^T + b2[e]`, e the expert of r.

    Args:
        x: (R, D), sorted by expert.
        w1: (E, D, H).
        b1: (E, 1, H), or None.
        w2: (E, D, F).
        b2: (E, 1, D); None if `b1` is.
        noise: (R, F) dropout multipliers of the hidden layer, or `None`.
        activation: entry of `ds_seq.modules.activations`.
        counts: (E,) int64, number of rows per expert; their sum is R.
        packed: packed maps of each expert, used if no gradient is needed.

    Returns:
        (R, D).
    """
    windows = _windows(counts, len(x))
    if torch.is_grad_enabled() and (x.requires_grad or w1.requires_grad):
        result: Tensor = _ExpertLoop.apply(x, w1, b1, w2, b2, noise, activation, windows)  # type: ignore[no-untyped-call]
        return result
    return _forward(x, _Net(w1, b1, w2, b2), noise, activation, windows, None, packed)
