"""Self-attention within a sliding window, computed in blocks of queries.

A block of queries sees its own positions and those that the window reaches before and after them,
so time and memory grow with the length of the text times the window, and not with its square.

Shapes: B batch, T length, H heads, H' heads of keys and values, Dh width of a head, D = H Dh;
N blocks of Q queries with S keys each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.modules.attention import attend
from ds_seq.modules.kv_cache import KeyValue
from ds_seq.modules.position_bias import OUTSIDE, PositionBias

_MULTIPLE = 64  # of the number of queries in a block: small blocks have small, slow products
_FEWEST_BLOCKS = 4  # in fewer blocks there is nothing to gain


class LocalAttention(NamedTuple):
    """The blocks of one stack, whose layers share them."""

    bias: Tensor
    """(H or 1, Q, S), added to the scores of every block; hides what is outside the window."""
    queries: int
    """Q, queries in a block."""
    before: int
    """Number of keys before the first query of a block."""
    after: int
    """Number of keys after its last query."""

    def attend(
        self, query: Tensor, memory: KeyValue, mask: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend within the window.

        Args:
            query: (B, H, T, Dh).
            memory: keys and values, each (B, H', T, Dh).
            mask: (B, 1, 1, T) with 0 at real keys and -inf at padding, or None.
            dropout: probability of dropping a weight.

        Returns:
            (B, T, D).
        """
        batch, _, length, _ = query.shape
        rest = -length % self.queries
        blocks = F.pad(query, (0, 0, 0, rest)).unflatten(2, (-1, self.queries))
        keys, values = (
            self._overlapping(F.pad(x, (0, 0, self.before, rest + self.after)), -2).movedim(-1, -2)
            for x in memory
        )
        pieces = (x.transpose(1, 2).flatten(0, 1) for x in (blocks, keys, values))
        blocks, keys, values = pieces  # (B N, H or H', Q or S, Dh)
        scores = self._scores(query, mask, rest).flatten(0, 1)
        out = attend(blocks, KeyValue(keys, values), scores, dropout=dropout)
        return out.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]

    def _overlapping(self, x: Tensor, dim: int) -> Tensor:
        """Cut x along a dimension into N pieces of S, which become its last dimension."""
        return x.unfold(dim, self.bias.size(-1), self.queries)

    def _scores(self, like: Tensor, mask: Tensor | None, rest: int) -> Tensor:
        """Return what is added to the scores of all blocks, (B, N, H or 1, Q, S)."""
        batch, length = like.size(0), like.size(2)
        hidden = like.new_zeros(batch, length) if mask is None else mask[:, 0, 0]
        # finite, because queries at padding may have no other key
        hidden = F.pad(hidden.clamp(min=OUTSIDE), (self.before, rest + self.after), value=OUTSIDE)
        return self._overlapping(hidden, -1)[:, :, None, None] + self.bias


def local_attention(bias: PositionBias, window: int, causal: bool, like: Tensor) -> LocalAttention:
    """Return the blocks of a stack.

    Args:
        bias: bias of scores that hides keys outside the window.
        window: number of positions that a query sees on one side, its own included.
        causal: whether queries see the past only.
        like: a tensor with dtype and device of the scores.
    """
    queries, before = block_size(window), window - 1
    after = 0 if causal else before
    places = torch.arange(-before, queries + after, device=like.device)
    distances = places[before : before + queries, None] - places  # (Q, S)
    scores = bias(distances)
    if causal:
        scores = scores.masked_fill(distances < 0, OUTSIDE)
    return LocalAttention(scores.to(like.dtype), queries, before, after)


def block_size(window: int) -> int:
    """Return the number of queries in a block."""
    return -(-window // _MULTIPLE) * _MULTIPLE


def is_worthwhile(window: int, length: int) -> bool:
    """Return whether blocks take less time than all scores at once."""
    return length >= _FEWEST_BLOCKS * block_size(window)
