"""Positions as a bias of the scores of self-attention, computed once for all layers of a stack.

Shapes: H heads, T queries, S keys.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ds_seq.modules.local_attention import LocalAttention

OUTSIDE = -30000.0
"""Score of keys outside a window, whose weight is then exactly 0. It is finite, also in float16,
because queries at padding may have no key within the window."""


class PositionBias(Protocol):
    """A module that computes a bias of self-attention scores from distances."""

    def __call__(self, distances: Tensor) -> Tensor:
        """Return the bias (..., H, T, S) in float32, or in the precision of its parameters.

        Args:
            distances: (..., T, S) int64, position of the query minus position of the key; negative
                for later keys in an encoder. During search, distances of masked keys are
                arbitrary.
        """


class AlibiBias(nn.Module):
    """ALiBi (Press et al., 2021, https://arxiv.org/abs/2108.12409): a penalty per distance.

    Head h of H subtracts `2 ** (-8 (h + 1) / H)` per position between query and key, later keys of
    an encoder included. If H is no power of two, the slopes are those of the next lower power P,
    and then every other slope of 2 P, as in the authors' code.

    Args:
        num_heads: H.
        causal: not used; the distance of a later key counts without its sign.
    """

    def __init__(self, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.slopes = alibi_slopes(num_heads)

    def forward(self, distances: Tensor) -> Tensor:
        """See `PositionBias`."""
        slopes = torch.tensor(self.slopes, device=distances.device)
        return -slopes[:, None, None] * distances.abs().unsqueeze(-3)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slope of each head."""
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    between = [2.0 ** (-4.0 * (head + 1) / power) for head in range(0, 2 * power, 2)]
    return slopes + between[: num_heads - power]


class BucketBias(nn.Module):
    """The relative positions of T5 (Raffel et al., 2020): one learned number per bucket and head.

    Half of the buckets are for one distance each, the others for ranges that grow logarithmically
    up to `max_distance`; all larger distances share the last one. In an encoder, later keys have
    buckets of their own, half of all.

    Args:
        num_heads: H.
        causal: whether queries see the past only.
        num_buckets: number of buckets; a multiple of 4 in an encoder, of 2 in a decoder.
        max_distance: distance from which on all share a bucket.
    """

    def __init__(self, num_heads: int, causal: bool, num_buckets: int, max_distance: int) -> None:
        super().__init__()
        self.causal, self.num_buckets, self.max_distance = causal, num_buckets, max_distance
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))

    def draw_parameters(self) -> None:
        """Draw a normal distribution of deviation 0.02: attention starts nearly without bias."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, distances: Tensor) -> Tensor:
        """See `PositionBias`."""
        return self.weight[self.buckets(distances)].movedim(-1, -3)

    def buckets(self, distances: Tensor) -> Tensor:
        """Return the bucket of each distance, int64."""
        size, first = self.num_buckets, torch.zeros_like(distances)
        if self.causal:
            distances = distances.clamp(min=0)
        else:
            size //= 2
            first = (distances < 0) * size
            distances = distances.abs()
        exact = size // 2
        # in float32 and in this order, so that borders fall where the original has them
        growth = torch.log(distances.clamp(min=1).float() / exact)
        growth = growth / math.log(self.max_distance / exact) * (size - exact)
        far = (exact + growth.to(torch.int64)).clamp(max=size - 1)
        return first + torch.where(distances < exact, distances, far)


class Window(nn.Module):
    """A sliding window: queries see only keys at a distance below its size.

    Args:
        size: number of positions, the query's own included.
        bias: bias of the keys within the window, or None.
        causal: whether queries see the past only.
    """

    def __init__(self, size: int, bias: nn.Module | None, causal: bool) -> None:
        super().__init__()
        self.size, self.bias, self.causal = size, bias, causal

    def forward(self, distances: Tensor) -> Tensor:
        """See `PositionBias`; without a bias, all heads share one (..., 1, T, S)."""
        outside = (distances.abs() >= self.size).unsqueeze(-3)
        if self.bias is None:
            zeros = torch.zeros(outside.shape, device=distances.device)
            return zeros.masked_fill(outside, OUTSIDE)
        bias: Tensor = self.bias(distances)
        return bias.masked_fill(outside, OUTSIDE)

    def blocks(self, x: Tensor) -> LocalAttention | None:
        """Return the attention to hidden states x (B, T, D) in blocks; None if T is too small."""
        # imported here because most models have no window, and most texts are short
        from ds_seq.modules.local_attention import is_worthwhile, local_attention

        if not is_worthwhile(self.size, x.size(1)):
            return None
        return local_attention(self, self.size, self.causal, x)
