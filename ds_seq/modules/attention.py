"""Multi-head attention (Vaswani et al., 2017): fused projections, fused kernels, cached decoding.

Fused kernels never hold the attention map, so whoever wants to see it (`with_map`) pays for plain
matrix products and for the map itself.

Masks are either None (attend everywhere) or broadcast to (B, H, T, S): bool with True where a
query may look, or a float that is added to the scores.

Shapes: B batch, T queries, S keys, D model width, H heads, Dh = D / H, K beam width,
L decoded length.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.dropout import dropout as drop_out
from ds_seq.modules.kv_cache import KeyValueBuffer
from ds_seq.modules.linear import Linear
from ds_seq.modules.positions import RotaryPositions

# With fewer queries than this, two plain matrix products beat PyTorch's fused CPU kernel, which
# is tiled for long sequences (2 cores, 5 queries, 50 to 500 keys: 1.1 to 2.4 times faster).
_FUSED_MIN_QUERIES = 12


class KeyValue(NamedTuple):
    """What queries look at: keys and values, each (B, H, S, Dh)."""

    key: Tensor
    value: Tensor


def attend(
    query: Tensor,
    memory: KeyValue,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention of query (B, H, T, Dh); returns (B, T, D)."""
    short = query.size(-2) < _FUSED_MIN_QUERIES and not causal and dropout == 0.0
    if short and query.device.type == "cpu":
        out = _masked(_scores(query, memory), mask).softmax(dim=-1) @ memory.value
    else:
        out = F.scaled_dot_product_attention(
            query, *memory, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
    return _merge_heads(out)


def attend_with_map(
    query: Tensor,
    memory: KeyValue,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`attend`, and what was looked at.

    Returns:
        (B, T, D), and the attention map (B, H, T, S) in float32 before dropout: rows sum to 1, and
        what a query may not see has exactly 0.
    """
    scores = _masked(_scores(query, memory).float(), mask)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    weights = scores.softmax(dim=-1)
    used = drop_out(weights, dropout, training=True).to(query.dtype)
    return _merge_heads(used @ memory.value), weights


def _scores(query: Tensor, memory: KeyValue) -> Tensor:
    """Scaled products of queries and keys, (B, H, T, S)."""
    return (query * (1.0 / math.sqrt(query.size(-1)))) @ memory.key.transpose(-1, -2)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, T, Dh) -> (B, T, D)


class SelfAttention(nn.Module):
    """A sequence attends to itself, or, causally, to its own past.

    Args:
        d_model: D, a multiple of `num_heads`.
        num_heads: H.
        dropout: probability of dropping an attention weight in training.
        causal: position t sees positions <= t only.
        rotary: turns queries and keys by their positions, or None.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        causal: bool,
        rotary: RotaryPositions | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.rotary = rotary
        self.qkv = Linear(d_model, 3 * d_model)
        self.output = Linear(d_model, d_model)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        past: KeyValueBuffer | None = None,
        with_map: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: hidden states (B, T, D); with `past`, the newest token of each of K hypotheses of
                a sentence (B, K, D).
            mask: see the top of the file. With `causal`, and padding on the right, real tokens
                never see padding, so none is needed.
            past: keys and values of the earlier steps, to be extended by this one.
            with_map: whether the map is wanted, too; never with `past`.

        Returns:
            (B, T, D), or (B, K, D) with `past`; and the map (B, H, T, T), see `attend_with_map`,
            or None.
        """
        # (B, T, 3 D) -> (3, B, H, T, Dh)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            # All hypotheses stand at the same position, so one row of angles is broadcast.
            query, key, value = self._rotate(qkv, past.length, 1)
            memory = KeyValue(*past.append(key, value))
            return self.output(attend(query, memory, past.mask)), None
        query, key, value = self._rotate(qkv, 0, x.size(1))
        memory = KeyValue(key, value)
        dropout = self.dropout if self.training else 0.0
        if with_map:
            attended, seen = attend_with_map(query, memory, mask, self.causal, dropout)
            return self.output(attended), seen
        return self.output(attend(query, memory, mask, self.causal, dropout)), None

    def _rotate(self, qkv: Tensor, start: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        if self.rotary is None:
            query, key, value = qkv.unbind(0)
        else:
            query, key = self.rotary(qkv[:2], start, length).unbind(0)
            value = qkv[2]
        return query, key, value


class CrossAttention(nn.Module):
    """The target attends to the encoded source.

    `memory` projects the source once; `forward` may then be called any number of times. In beam
    search the K hypotheses of a sentence are its T queries, so nothing is repeated K times.

    Args:
        d_model: D, a multiple of `num_heads`.
        num_heads: H.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = Linear(d_model, d_model)
        self.key_value = Linear(d_model, 2 * d_model)
        self.output = Linear(d_model, d_model)

    def memory(self, encoded: Tensor) -> KeyValue:
        """Keys and values (B, H, S, Dh) of the encoded source (B, S, D)."""
        # (B, S, 2 D) -> (2, B, H, S, Dh)
        projected = self.key_value(encoded).unflatten(-1, (2, self.num_heads, -1))
        return KeyValue(*projected.permute(2, 0, 3, 1, 4).unbind(0))

    def forward(
        self, x: Tensor, memory: KeyValue, mask: Tensor | None = None, with_map: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: queries (B, T, D).
            memory: what they look at.
            mask: (B, 1, 1, S), see the top of the file.
            with_map: whether the map is wanted, too.

        Returns:
            (B, T, D), and the map (B, H, T, S), see `attend_with_map`, or None.
        """
        # (B, T, D) -> (B, H, T, Dh)
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if with_map:
            attended, seen = attend_with_map(query, memory, mask, dropout=dropout)
            return self.output(attended), seen
        return self.output(attend(query, memory, mask, dropout=dropout)), None
