"""Dilated attention (LongNet, Ding et al., 2023, https://arxiv.org/abs/2307.02486).

A text is cut into segments of several lengths. Within a segment of length w with dilation r, head h
uses every r-th token from token h mod r on: these attend to each other. With the softmax divisors
of each length as weights, the results are one softmax over all keys that a query sees, in which a
key counts as often as there are lengths through which it is seen. Time and memory are those of
w / r keys per query.

The published code takes the weights as constants in the backward pass; here gradients are those of
the formula. They come at no cost: with the divisor of all lengths in place of its own, the backward
pass of attention within each length adds its share.

Shapes: B batch, T length, H heads, Dh width of a head, N segments of w tokens, M used tokens of a
segment and head; S = B N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.modules.attention import SelfAttention, attend, attend_with_map
from ds_seq.modules.body import BodyOutput, Context
from ds_seq.modules.kv_cache import BeamPaths, KeyValue, KeyValueBuffer
from ds_seq.modules.position_bias import OUTSIDE
from ds_seq.modules.segment_attention import Attended, Dropping, Scored, backward_of, forward_of

_NO_CONTEXT = Context()


class _Part(NamedTuple):
    """Some segments of one length, which lie side by side."""

    start: int
    stop: int
    segment: int
    dilation: int
    offsets: Tensor
    """(H,) int64, the first token that each head uses."""

    def take(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Return the used tokens of x (B, H, T, W) as (S, H, M, W).

        If the dilation does not divide the segment, some heads have a token less than others, in
        whose place `fill` is.
        """
        x = x[:, :, self.start : self.stop].unflatten(2, (-1, self.segment))
        if self.dilation == 1:
            return x.transpose(1, 2).flatten(0, 1)
        x = self._grid(x, fill)  # (B, H, N, M, r, W)
        heads = torch.arange(len(self.offsets), device=x.device)
        return x[:, heads, :, :, self.offsets].permute(1, 2, 0, 3, 4).flatten(0, 1)

    def put(self, x: Tensor, used: Tensor) -> None:
        """Write the used tokens (S, H, M, W) into x (B, H, T, W)."""
        whole = x[:, :, self.start : self.stop].unflatten(2, (-1, self.segment))
        used = used.unflatten(0, (len(x), -1))  # (B, N, H, M, W)
        if self.dilation == 1:
            whole.copy_(used.transpose(1, 2))
            return
        grid = self._grid(whole, 0.0)
        heads = torch.arange(len(self.offsets), device=x.device)
        grid[:, heads, :, :, self.offsets] = used.permute(2, 0, 1, 3, 4)
        if self.segment % self.dilation:  # then the grid is a copy
            whole.copy_(grid.flatten(3, 4)[:, :, :, : self.segment])

    def _grid(self, x: Tensor, fill: float) -> Tensor:
        """Return x (B, H, N, w, W) as (B, H, N, M, r, W)."""
        rest = -self.segment % self.dilation
        if rest:
            x = F.pad(x, (0, 0, 0, rest), value=fill)
        return x.unflatten(3, (-1, self.dilation))


class Segments(NamedTuple):
    """The segments of a text, and how its tokens see each other in them."""

    pairs: tuple[tuple[int, int], ...]
    """Pairs of a segment's length and its dilation."""
    heads: Tensor
    """(H,) int64, numbers of the heads."""
    causal: bool
    dropout: float
    """Probability of dropping a weight."""

    def parts(self, length: int) -> Iterator[_Part]:
        """Yield the segments of a text; the last ones may be shorter than the others."""
        for segment, dilation in self.pairs:
            offsets = self.heads % dilation
            whole = length // segment * segment
            if whole:
                yield _Part(0, whole, segment, dilation, offsets)
            if whole < length:
                yield _Part(whole, length, length - whole, dilation, offsets)

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return what makes attention to all keys this attention: logarithms of the counts.

        Args:
            queries: (..., T) int64, positions.
            keys: (..., C) int64, positions.

        Returns:
            (..., H, T, C) in float32, `OUTSIDE` at keys that a query does not see.
        """
        queries, keys = queries[..., None, :, None], keys[..., None, None, :]
        counts = torch.zeros((), device=keys.device)
        for segment, dilation in self.pairs:
            offsets = (self.heads % dilation)[:, None, None]
            seen = queries // segment == keys // segment
            if dilation > 1:
                seen = seen & (queries % segment % dilation == offsets)
                seen = seen & (keys % segment % dilation == offsets)
            counts = counts + seen
        if self.causal:
            counts = counts * (keys <= queries)
        bias = counts.log().clamp(min=OUTSIDE)
        return bias.expand(*bias.shape[:-3], len(self.heads), -1, -1)


def attend_in_segments(
    query: Tensor, memory: KeyValue, mask: Tensor | None, segments: Segments
) -> Tensor:
    """Apply dilated attention to whole sequences.

    Args:
        query: (B, H, T, Dh).
        memory: keys and values, (B, H', T, Dh) each.
        mask: (B, T) bool, True at real tokens; None if all are. If causal, it is not needed:
            padding is on the right.
        segments: the segments.

    Returns:
        (B, T, D).
    """
    if query.numel() == 0:
        return attend(query, memory, dropout=0.0)
    times = query.size(1) // memory.key.size(1)
    key, value = (x if times == 1 else x.repeat_interleave(times, 1) for x in memory)
    hidden = None
    if not segments.causal:
        hidden = _hidden(query, mask, segments)
    out: Tensor = _Attention.apply(query, key, value, hidden, segments)
    return out.transpose(1, 2).flatten(2)


def _hidden(query: Tensor, mask: Tensor | None, segments: Segments) -> Tensor | None:
    """Return (B, 1, T, 1) with 0 at real tokens and `OUTSIDE` at padding; None if nothing is."""
    if mask is not None:
        scores = query.new_zeros(mask.shape).masked_fill_(~mask, OUTSIDE)
        return scores[:, None, :, None]
    parts = segments.parts(query.size(2))
    if any(part.segment % part.dilation for part in parts):
        return query.new_zeros(query.size(0), 1, query.size(2), 1)
    return None


class _Attention(torch.autograd.Function):
    """Attention in segments, which keeps nothing but its arguments, output and divisors."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
        segments: Segments,
    ) -> Tensor:
        """Return the attended values (B, H, T, Dh)."""
        ctx.segments = segments
        # of a dropout that the backward pass repeats
        ctx.seed = int(torch.randint(2**62, ())) if segments.dropout else None
        exact = torch.promote_types(query.dtype, torch.float32)
        batch, heads, length, width = query.shape  # as merged heads lie in memory
        out = query.new_zeros(batch, length, heads, width, dtype=exact).transpose(1, 2)
        sums = out.new_full((*out.shape[:3], 1), -math.inf)  # logarithms of the divisors
        dropping = _dropping(query, segments.dropout, ctx.seed)
        for part in segments.parts(query.size(2)):
            scored = _scored(part, KeyValue(key, value), query, hidden, segments)
            found, found_sums = forward_of(scored, dropping)
            before = part.take(sums)
            both = torch.logaddexp(before, found_sums[..., None])
            found = found * (found_sums[..., None] - both).exp()
            found += part.take(out) * (before - both).exp()
            part.put(out, found)
            part.put(sums, both)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, hidden, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Add up the gradients of all lengths."""
        query, key, value, hidden, out, sums = ctx.saved_tensors
        segments: Segments = ctx.segments
        grads = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
        ]
        dropping = _dropping(query, segments.dropout, ctx.seed)
        for part in segments.parts(query.size(2)):
            scored = _scored(part, KeyValue(key, value), query, hidden, segments)
            attended = Attended(part.take(out), part.take(sums).squeeze(-1))
            found = backward_of(scored, part.take(grad), attended, dropping)
            for total, share in zip(grads, found, strict=True):
                part.put(total, part.take(total) + share)
        return (*grads, None, None)


def _scored(
    part: _Part, memory: KeyValue, query: Tensor, hidden: Tensor | None, segments: Segments
) -> Scored:
    """Return what attends to what in some segments."""
    mask = None
    if hidden is not None:
        if part.dilation > 1:
            hidden = hidden.expand(-1, len(segments.heads), -1, -1)
        mask = part.take(hidden, OUTSIDE).transpose(-1, -2)  # (S, H or 1, 1, M)
    key, value = map(part.take, memory)
    return Scored(part.take(query), key, value, mask, segments.causal)


def _dropping(like: Tensor, share: float, seed: int | None) -> Dropping | None:
    if seed is None:
        return None
    return Dropping(share, torch.Generator(like.device).manual_seed(seed))


class DilatedAttention(SelfAttention):
    """Self-attention within segments, with the parameters of `SelfAttention`.

    Positions count from the start of each row, where its text begins.

    Args:
        *args: see `SelfAttention`.
        segments: pairs of a segment's length and its dilation; the first dilation is 1.
        **options: see `SelfAttention`.
    """

    def __init__(self, *args: Any, segments: Sequence[tuple[int, int]], **options: Any) -> None:
        super().__init__(*args, **options)
        self.pairs = tuple(segments)

    def forward(self, x: Tensor, context: Context = _NO_CONTEXT) -> BodyOutput:
        """Attend within whole sequences, see `SelfAttention`."""
        ways = context.ways
        query, key, value = self._project(x, 0, x.size(1), ways)
        memory = KeyValue(key, value)
        dropout = self.dropout if self.training else 0.0
        segments = self._segments(x, dropout)
        if context.with_maps:
            places = torch.arange(x.size(1), device=x.device)
            bias = segments.bias(places, places).to(x.dtype)
            mask = context.attention_mask
            bias = bias if mask is None else bias + mask
            attended, weights = attend_with_map(query, memory, bias, dropout=dropout)
            return BodyOutput(self._joined(attended, ways), map=weights)
        is_padded = context.attention_mask is not None
        attended = attend_in_segments(
            query, memory, context.token_mask if is_padded else None, segments
        )
        return BodyOutput(self._joined(attended, ways))

    def start_past(self, context: Context, paths: BeamPaths) -> KeyValueBuffer:
        """Return an empty buffer for the keys and values of decoded tokens."""
        paths.track_positions()
        return KeyValueBuffer(paths)

    def step(self, x: Tensor, past: KeyValueBuffer, context: Context = _NO_CONTEXT) -> Tensor:
        """Attend with the newest token of each hypothesis, see `SelfAttention`."""
        query, key, value = self._project(x, past.length, 1, context.ways)
        memory = KeyValue(*past.append(key, value))
        keys = past.key_positions
        bias = self._segments(x, 0.0).bias(keys.new_tensor([past.length]), keys).to(x.dtype)
        if past.mask is not None:
            bias = bias + past.mask
        return self._joined(attend(query, memory, bias, dropout=0.0), context.ways)

    def _segments(self, like: Tensor, dropout: float) -> Segments:
        heads = self.kept_heads
        if heads is None:
            heads = torch.arange(self.num_heads, device=like.device)
        return Segments(self.pairs, heads, self.causal, dropout)
