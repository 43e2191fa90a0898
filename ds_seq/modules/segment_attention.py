"""Attention within segments with the logarithms of its divisors, and its backward pass.

The backward pass takes output and divisors as arguments, so that they may be those of a softmax of
which the keys of a segment are only a part.

Shapes: S segments, H heads, M tokens of a segment, Dh width of a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_MAPS = 2**25
"""Scores that are computed at a time without a fused kernel: 128 MiB in float32."""

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Scored(NamedTuple):
    """Queries, keys and values of some segments."""

    query: Tensor
    """(S, H, M, Dh)."""
    key: Tensor
    """(S, H, M, Dh)."""
    value: Tensor
    """(S, H, M, Dh)."""
    mask: Tensor | None
    """(S, H or 1, 1, M), finite, added to the scores; None with `causal`."""
    causal: bool

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return 1.0 / math.sqrt(self.query.size(-1))


def forward_of(
    scored: Scored, dropout: float, noise: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Attend within segments.

    Args:
        scored: the segments.
        dropout: probability of dropping a weight.
        noise: generator of what is dropped; None without dropout.

    Returns:
        The attended values (S, H, M, Dh), and the logarithms of the divisors (S, H, M) in float32
        (float64 if the queries are).
    """
    if _is_fused(scored, dropout):
        query, key, value, mask, causal = scored
        out, sums = _FORWARD(query, key, value, 0.0, causal, attn_mask=mask)
        return out, sums
    outs, sums = [], []
    for block in _blocks(scored):
        scores = _scores(block)
        sums.append(scores.logsumexp(-1))
        weights = (scores - sums[-1][..., None]).exp()
        if noise is not None:
            weights *= _kept(weights, dropout, noise)
        outs.append(weights @ block.value.to(weights.dtype))
    return torch.cat(outs), torch.cat(sums)


def backward_of(
    scored: Scored,
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    dropout: float,
    noise: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values.

    Args:
        scored: the segments.
        grad: gradient of the output (S, H, M, Dh).
        out: the output (S, H, M, Dh).
        sums: logarithms of the divisors (S, H, M).
        dropout: probability of dropping a weight.
        noise: generator in the state in which it was before the forward pass.
    """
    if _is_fused(scored, dropout):
        query, key, value, mask, causal = scored
        tensors = (grad, query, key, value, out, sums)
        queries, keys, values = _BACKWARD(*tensors, 0.0, causal, attn_mask=mask)
        return queries, keys, values
    found = []
    first = 0
    for block in _blocks(scored):
        rows = slice(first, first + len(block.query))
        first = rows.stop
        found.append(_plain_backward(block, grad[rows], out[rows], sums[rows], dropout, noise))
    queries, keys, values = map(torch.cat, zip(*found, strict=True))
    return queries, keys, values


def _plain_backward(
    block: Scored,
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    dropout: float,
    noise: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = _scores(block)
    query, key, value = (x.to(scores.dtype) for x in block[:3])
    grad, out = grad.to(scores.dtype), out.to(scores.dtype)
    weights = (scores - sums[..., None]).exp()
    of_weights = grad @ value.transpose(-1, -2)
    used = weights
    if noise is not None:
        kept = _kept(weights, dropout, noise)
        used, of_weights = weights * kept, of_weights * kept
    of_scores = weights * (of_weights - (grad * out).sum(-1, keepdim=True)) * block.scale
    of_value = used.transpose(-1, -2) @ grad
    found = (of_scores @ key, of_scores.transpose(-1, -2) @ query, of_value)
    queries, keys, values = (x.to(block.query.dtype) for x in found)
    return queries, keys, values


def _is_fused(scored: Scored, dropout: float) -> bool:
    """Return whether PyTorch's kernel for CPUs serves; it has no dropout."""
    enabled = torch.backends.cuda.flash_sdp_enabled()  # the switch of all devices
    return enabled and scored.query.device.type == "cpu" and dropout == 0.0


def _blocks(scored: Scored) -> list[Scored]:
    """Return the segments in blocks whose scores fit into memory."""
    query, key, value, mask, causal = scored
    rows = max(1, _LARGEST_MAPS // (query.size(1) * query.size(2) ** 2))
    parts = zip(query.split(rows), key.split(rows), value.split(rows), strict=True)
    masks = [None] * -(-len(query) // rows) if mask is None else mask.split(rows)
    return [Scored(*part, each, causal) for part, each in zip(parts, masks, strict=True)]


def _scores(block: Scored) -> Tensor:
    """Return the scores (S, H, M, M), in float32 or the precision of the queries."""
    exact = torch.promote_types(block.query.dtype, torch.float32)
    scores = (block.query.to(exact) * block.scale) @ block.key.to(exact).transpose(-1, -2)
    if block.mask is not None:
        scores = scores + block.mask
    if block.causal:
        shape = scores.shape[-2:]
        future = torch.ones(shape, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores


def _kept(like: Tensor, dropout: float, noise: torch.Generator) -> Tensor:
    """Return 0 for what is dropped, and the factor of the rest."""
    kept = torch.rand(like.shape, generator=noise, device=like.device, dtype=torch.float32)
    return (kept >= dropout).to(like.dtype) / (1.0 - dropout)
