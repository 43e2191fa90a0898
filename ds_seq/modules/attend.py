"""Scaled dot-product attention (Vaswani et al., 2017): fused kernels, maps, and steps of a search.

Fused kernels never materialize the attention map, so returning it (`attend_with_map`) costs plain
matrix products and the memory of the map.

Masks are either None (attend everywhere) or broadcast to (B, H, T, S): bool with True where a query
may attend, or float and added to the scores.

Shapes: B batch, T queries, S keys, D model width, H heads, H' heads of keys and values, Dh = D / H.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.modules import native
from ds_seq.modules.kv_cache import KeyValue
from ds_seq.modules.residual import dropout as drop_out

# With fewer queries than this, two plain matrix products beat PyTorch's fused CPU kernel, which
# is tiled for long sequences (2 cores, 5 queries, 50 to 500 keys: 1.1 to 2.4 times faster).
_FUSED_MIN_QUERIES = 12


def attend(
    query: Tensor,
    memory: KeyValue,
    mask: Tensor | None = None,
    causal: bool = False,
    *,
    dropout: float,
) -> Tensor:
    """Apply scaled dot-product attention to `query` (B, H, T, Dh); returns (B, T, D)."""
    if mask is not None and mask.dim() == 3:  # (H, T, S), which no fused kernel takes
        mask = mask.unsqueeze(0)
    short = query.size(-2) < _FUSED_MIN_QUERIES and not causal and dropout == 0.0
    if short and query.device.type == "cpu":
        out = _attend_short(query, memory, mask)
    else:
        memory = _one_per_query_head(query, memory)
        if causal and mask is not None:  # the kernel takes only one of them
            mask, causal = _causal_too(mask, _future(query, memory)), False
        out = F.scaled_dot_product_attention(
            query, *memory, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
    return _merge_heads(out)


def attend_with_map(
    query: Tensor,
    memory: KeyValue,
    mask: Tensor | None = None,
    causal: bool = False,
    *,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Apply `attend` and return the attention map, too.

    Returns:
        The output (B, T, D), and the attention map (B, H, T, S) in float32 before dropout: rows sum
        to 1, and masked positions are exactly 0.
    """
    memory = _one_per_query_head(query, memory)
    scores = masked(_scores(query, memory).float(), mask)
    if causal:
        scores = scores.masked_fill(_future(query, memory), -math.inf)
    weights = scores.softmax(dim=-1)
    used = drop_out(weights, dropout, training=True).to(query.dtype)
    return _merge_heads(used @ memory.value), weights


def attend_step(query: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
    """Apply `attend` to the newest tokens of hypotheses, in C if that was compiled."""
    attended = native.attend(query, *memory, mask)
    return attend(query, memory, mask, dropout=0.0) if attended is None else attended


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a mask to scores, see above."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def _attend_short(query: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
    """Attend with plain matrix products; returns (B, H, T, Dh).

    Heads that share keys and values become further queries, so that nothing is copied.
    """
    num_heads, shared = query.size(1), memory.key.size(1)
    if shared < num_heads:
        length = query.size(2)
        query = query.unflatten(1, (shared, -1)).flatten(2, 3)  # (B, H', H / H' T, Dh)
        if mask is not None and mask.size(1) > 1:
            mask = mask.expand(-1, -1, length, -1).unflatten(1, (shared, -1)).flatten(2, 3)
        elif mask is not None and mask.size(2) > 1:
            mask = mask.repeat(1, 1, num_heads // shared, 1)
        out = _attend_short(query, memory, mask)
        return out.unflatten(2, (-1, length)).flatten(1, 2)
    return masked(_scores(query, memory), mask).softmax(dim=-1) @ memory.value


def _one_per_query_head(query: Tensor, memory: KeyValue) -> KeyValue:
    """Repeat keys and values that several heads of the queries share."""
    times = query.size(1) // memory.key.size(1)
    return memory if times == 1 else KeyValue(*(x.repeat_interleave(times, 1) for x in memory))


def _scores(query: Tensor, memory: KeyValue) -> Tensor:
    """Return the scaled products of queries and keys, (B, H, T, S)."""
    return (query * (1.0 / math.sqrt(query.size(-1)))) @ memory.key.transpose(-1, -2)


def _future(query: Tensor, memory: KeyValue) -> Tensor:
    """Return (T, S) bool, True at keys later than the query."""
    shape = query.size(-2), memory.key.size(-2)
    return torch.ones(shape, dtype=torch.bool, device=query.device).triu(1)


def _causal_too(mask: Tensor, future: Tensor) -> Tensor:
    return mask & ~future if mask.dtype == torch.bool else mask.masked_fill(future, -math.inf)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, T, Dh) -> (B, T, D)
