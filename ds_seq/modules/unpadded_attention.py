"""Attention by lengths instead of a mask: padding is left out, which flash attention needs.

On a GPU, a mask of padding rules out flash attention; memory-efficient attention takes one. For the
short sentences of translation the latter is faster (16,384 tokens in sentences of 25 on an NVIDIA
H200: 0.94 against 1.66 ms, forward and backward), so this is for long texts only, and only where it
is asked for: `DS_SEQ_UNPADDED=1` in the environment. It has not yet run on a GPU.

The kernel is `torch.nn.attention.varlen.varlen_attn` (PyTorch 2.10 or later; fp16 and bf16, heads
of a width that is a multiple of 8).

Shapes: B batch, T queries, S keys, H heads, H' heads of keys and values, Dh width of a head,
D = H Dh; N real keys and M real queries of all sequences.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SHORTEST = 256  # keys: with fewer, memory-efficient attention with a mask is at least as fast
_DTYPES = (torch.float16, torch.bfloat16)

Kernel = Callable[..., Any]
"""A function with the arguments of `varlen_attn`."""


class Lengths(NamedTuple):
    """The real tokens of a padded batch."""

    rows: Tensor
    """(N,) int64, their rows among the B * S, ascending."""
    offsets: Tensor
    """(B + 1,) int32, the first of each sequence among them, and N."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Lengths | None = None
    ) -> Tensor:
        """Attend to the real keys, see `attend_unpadded`."""
        kernel = _kernel()
        assert kernel is not None, "`serves` requires the kernel"
        return attend_unpadded(query, key, value, self, queries, kernel)


def lengths_of(mask: Tensor, count: int) -> Lengths:
    """Return the real tokens without waiting for the device.

    Args:
        mask: (B, S) bool, True at real tokens.
        count: N.
    """
    rows = torch.nonzero_static(mask.reshape(-1), size=count).squeeze(1)
    offsets = mask.new_zeros(mask.size(0) + 1, dtype=torch.int32)
    torch.cumsum(mask.sum(1), 0, dtype=torch.int32, out=offsets[1:])
    return Lengths(rows, offsets)


def serves(mask: Tensor, like: Tensor) -> bool:
    """Return whether to attend by lengths, for a mask (B, S) and hidden states of its tokens."""
    return (
        os.environ.get("DS_SEQ_UNPADDED") == "1"
        and like.is_cuda
        and like.dtype in _DTYPES
        and mask.size(1) >= _SHORTEST
        and _kernel() is not None
    )


@functools.cache
def _kernel() -> Kernel | None:
    try:
        module = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:  # an older PyTorch
        return None
    kernel: Kernel = module.varlen_attn
    return kernel


def attend_unpadded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Lengths,
    queries: Lengths | None,
    kernel: Kernel,
) -> Tensor:
    """Attend to the real keys of each sequence.

    Args:
        query: (B, H, T, Dh).
        key: (B, H', S, Dh).
        value: (B, H', S, Dh).
        keys: the real keys.
        queries: the real queries; None if all are. The output is 0 at the others.
        kernel: `varlen_attn`, or a function like it.

    Returns:
        (B, T, D).
    """
    batch, _, length, _ = query.shape
    rows = _tokens(query)  # (B T, H, Dh)
    if queries is None:
        step = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
        used, offsets = rows, step * length
    else:
        used, offsets = rows.index_select(0, queries.rows), queries.offsets
    attended: Tensor = kernel(
        used,
        *(_tokens(x).index_select(0, keys.rows) for x in (key, value)),
        offsets,
        keys.offsets,
        length,
        key.size(2),
        enable_gqa=key.size(1) != query.size(1),
    )
    if queries is not None:
        attended = torch.zeros_like(rows).index_copy(0, queries.rows, attended)
    return attended.reshape(batch, length, -1)


def _tokens(x: Tensor) -> Tensor:
    """Return x (B, H, L, Dh) as one row per token, (B L, H, Dh)."""
    return x.transpose(1, 2).reshape(-1, x.size(1), x.size(3))
