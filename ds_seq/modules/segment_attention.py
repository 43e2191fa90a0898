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


class Dropping(NamedTuple):
    """Weights that are dropped."""

    share: float
    """Probability of dropping a weight."""
    noise: torch.Generator
    """Generator of what is dropped; in a backward pass in the state before the forward pass."""

    def kept(self, like: Tensor) -> Tensor:
        """Return 0 for the weights that are dropped, and the factor of the rest."""
        draws = torch.rand(
            like.shape, generator=self.noise, device=like.device, dtype=torch.float32
        )
        return (draws >= self.share).to(like.dtype) / (1.0 - self.share)


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


class Attended(NamedTuple):
    """What queries have taken."""

    out: Tensor
    """(S, H, M, Dh)."""
    sums: Tensor
    """(S, H, M), the logarithms of the divisors in float32 (float64 if the queries are)."""


def forward_of(scored: Scored, dropping: Dropping | None) -> Attended:
    """Attend within segments.

    Args:
        scored: the segments.
        dropping: what is dropped; None without dropout.
    """
    if _is_fused(scored, dropping):
        query, key, value, mask, causal = scored
        return Attended(*_FORWARD(query, key, value, 0.0, causal, attn_mask=mask))
    outs, sums = [], []
    for block in _blocks(scored):
        scores = _scores(block)
        sums.append(scores.logsumexp(-1))
        weights = (scores - sums[-1][..., None]).exp()
        if dropping is not None:
            weights *= dropping.kept(weights)
        outs.append(weights @ block.value.to(weights.dtype))
    return Attended(torch.cat(outs), torch.cat(sums))


def backward_of(
    scored: Scored, grad: Tensor, attended: Attended, dropping: Dropping | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values.

    Args:
        scored: the segments.
        grad: gradient of the output (S, H, M, Dh).
        attended: the output and the divisors.
        dropping: what the forward pass has dropped; None without dropout.
    """
    if _is_fused(scored, dropping):
        query, key, value, mask, causal = scored
        tensors = (grad, query, key, value, *attended)
        queries, keys, values = _BACKWARD(*tensors, 0.0, causal, attn_mask=mask)
        return queries, keys, values
    found = []
    first = 0
    for block in _blocks(scored):
        rows = slice(first, first + len(block.query))
        first = rows.stop
        part = Attended(*(each[rows] for each in attended))
        found.append(_plain_backward(block, grad[rows], part, dropping))
    queries, keys, values = map(torch.cat, zip(*found, strict=True))
    return queries, keys, values


def _plain_backward(
    block: Scored, grad: Tensor, attended: Attended, dropping: Dropping | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores = _scores(block)
    query, key, value = (x.to(scores.dtype) for x in block[:3])
    grad, out = grad.to(scores.dtype), attended.out.to(scores.dtype)
    weights = (scores - attended.sums[..., None]).exp()
    of_weights = grad @ value.transpose(-1, -2)
    used = weights
    if dropping is not None:
        kept = dropping.kept(weights)
        used, of_weights = weights * kept, of_weights * kept
    of_scores = weights * (of_weights - (grad * out).sum(-1, keepdim=True)) * block.scale
    of_value = used.transpose(-1, -2) @ grad
    found = (of_scores @ key, of_scores.transpose(-1, -2) @ query, of_value)
    queries, keys, values = (x.to(block.query.dtype) for x in found)
    return queries, keys, values


def _is_fused(scored: Scored, dropping: Dropping | None) -> bool:
    """Return whether PyTorch's kernel for CPUs serves; it has no dropout."""
    enabled = torch.backends.cuda.flash_sdp_enabled()  # the switch of all devices
    return enabled and scored.query.device.type == "cpu" and dropping is None


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
