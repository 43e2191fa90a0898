"""Multi-head attention (Vaswani et al., 2017): fused projections, fused kernels, cached decoding.

Fused kernels never materialize the attention map, so returning it (`with_maps`) costs plain matrix
products and the memory of the map.

Masks are either None (attend everywhere) or broadcast to (B, H, T, S): bool with True where a query
may attend, or float and added to the scores.

Shapes: B batch, T queries, S keys, D model width, H heads, H' heads of keys and values, Dh = D / H,
K beam width, L decoded length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules import native
from ds_seq.modules.body import BodyOutput, Context
from ds_seq.modules.kv_cache import BeamPaths, KeyValue, KeyValueBuffer, SourcePast
from ds_seq.modules.linear import Linear, LinearMaker, by_set, maps_of
from ds_seq.modules.residual import dropout as drop_out
from ds_seq.modules.rotary import RotaryPositions

if TYPE_CHECKING:
    from ds_seq.modules.multiway import Ways

# With fewer queries than this, two plain matrix products beat PyTorch's fused CPU kernel, which
# is tiled for long sequences (2 cores, 5 queries, 50 to 500 keys: 1.1 to 2.4 times faster).
_FUSED_MIN_QUERIES = 12

_GAIN = 2**-0.5  # queries, keys and values are initialized smaller than other maps, as in fairseq
_NO_CONTEXT = Context()


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
        if (attended := native.attend(query, *memory, mask)) is not None:
            return attended
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
    scores = _masked(_scores(query, memory).float(), mask)
    if causal:
        scores = scores.masked_fill(_future(query, memory), -math.inf)
    weights = scores.softmax(dim=-1)
    used = drop_out(weights, dropout, training=True).to(query.dtype)
    return _merge_heads(used @ memory.value), weights


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
    return _masked(_scores(query, memory), mask).softmax(dim=-1) @ memory.value


def _one_per_query_head(query: Tensor, memory: KeyValue) -> KeyValue:
    """Repeat keys and values that several heads of the queries share."""
    times = query.size(1) // memory.key.size(1)
    return memory if times == 1 else KeyValue(*(x.repeat_interleave(times, 1) for x in memory))


def _scores(query: Tensor, memory: KeyValue) -> Tensor:
    """Return the scaled products of queries and keys, (B, H, T, S)."""
    return (query * (1.0 / math.sqrt(query.size(-1)))) @ memory.key.transpose(-1, -2)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def _future(query: Tensor, memory: KeyValue) -> Tensor:
    """Return (T, S) bool, True at keys later than the query."""
    shape = query.size(-2), memory.key.size(-2)
    return torch.ones(shape, dtype=torch.bool, device=query.device).triu(1)


def _causal_too(mask: Tensor, future: Tensor) -> Tensor:
    return mask & ~future if mask.dtype == torch.bool else mask.masked_fill(future, -math.inf)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, T, Dh) -> (B, T, D)


def _heads(x: Tensor, widths: Sequence[int], head_width: int) -> list[Tensor]:
    """Split x (B, T, sum of widths) into parts (B, heads, T, Dh); views of it.

    Their gradients are joined by one copy. Views that share a dimension for the parts would take
    two.
    """
    parts = x.split_with_sizes(widths, dim=-1)
    return [part.unflatten(-1, (-1, head_width)).transpose(1, 2) for part in parts]


def _widths(
    head: int, num_heads: int, num_kv_heads: int | None, kept: Sequence[int] | None
) -> tuple[int, int]:
    """Return the features of all queries, and of all keys, of heads that are `head` wide."""
    attended = head * (num_heads if kept is None else len(kept))
    return attended, attended * (num_kv_heads or num_heads) // num_heads


class AttentionNorms(NamedTuple):
    """Optional norms of an attention, modules or None."""

    query: nn.Module | None = None
    """Norm of each head's queries (..., Dh), before positions turn them."""
    key: nn.Module | None = None
    """Norm of each head's keys (..., Dh), before positions turn them."""
    output: nn.Module | None = None
    """Norm of the attended values of all heads (..., D), before the output map (SubLN)."""


_NO_NORMS = AttentionNorms()


class SelfAttention(nn.Module):
    """Self-attention: a sequence attends to itself or, if causal, to its past.

    Args:
        d_model: width of the model, D; a multiple of `num_heads` without `head_dim`.
        num_heads: number of heads, H.
        dropout: probability of dropping an attention weight in training.
        causal: whether position t attends to positions <= t only.
        rotary: rotation of queries and keys by their positions, or None.
        num_kv_heads: number of heads of keys and values, each shared by the same number of heads
            of the queries (Ainslie et al., 2023); a divisor of `num_heads`, 1 for multi-query
            attention. None for one per head.
        norms: norms within the attention.
        make_linear: makes all maps, called like `Linear`.
        head_dim: width of a head, Dh; None for D / H.
        kept_heads: heads that are left of `num_heads`, whole groups that share keys and values;
            None: all.
    """

    kept_heads: Tensor | None

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        causal: bool,
        rotary: RotaryPositions | None = None,
        num_kv_heads: int | None = None,
        norms: AttentionNorms = _NO_NORMS,
        make_linear: LinearMaker = Linear,
        head_dim: int | None = None,
        kept_heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.head_width = head_dim or d_model // num_heads
        attended, shared = _widths(self.head_width, num_heads, num_kv_heads, kept_heads)
        self.num_heads = attended // self.head_width
        self.dropout = dropout
        self.causal = causal
        self.rotary = rotary
        kept = None if kept_heads is None else torch.tensor(kept_heads)
        self.register_buffer("kept_heads", kept, persistent=False)
        widths = (attended, shared, shared)
        self.qkv = make_linear(d_model, sum(widths), parts=widths, gain=_GAIN)
        self.query_norm, self.key_norm, self.inner_norm = norms
        self.output = make_linear(attended, d_model)

    def forward(self, x: Tensor, context: Context = _NO_CONTEXT) -> BodyOutput:
        """Attend within whole sequences.

        Args:
            x: hidden states (B, T, D).
            context: attention mask and position bias. If causal, no mask is needed: padding is on
                the right, so real tokens never attend to it.

        Returns:
            The output (B, T, D), and on request the map (B, H, T, T), see `attend_with_map`.
        """
        ways = context.ways
        query, key, value = self._project(x, 0, x.size(1), ways)
        memory = KeyValue(key, value)
        dropout = self.dropout if self.training else 0.0
        if context.local is not None:
            local = context.local._replace(bias=self._of_heads(context.local.bias))
            attended = local.attend(query, memory, context.attention_mask, dropout)
            return BodyOutput(self._joined(attended, ways))
        lengths, biased = context.lengths, context.position_bias is not None
        if lengths is not None and not (biased or context.with_maps) and dropout == 0.0:
            attended = lengths.attend(query, key, value, lengths)
            return BodyOutput(self._joined(attended, ways))
        mask = self._biased(context.attention_mask, context)
        if context.with_maps:
            attended, weights = attend_with_map(query, memory, mask, self.causal, dropout=dropout)
            return BodyOutput(self._joined(attended, ways), map=weights)
        attended = attend(query, memory, mask, self.causal, dropout=dropout)
        return BodyOutput(self._joined(attended, ways))

    def scale_parameters(self, factor: float) -> None:
        """Scale the initial maps of values and output, see `ds_seq.models.init`."""
        for qkv in maps_of(self.qkv):
            qkv.weight.split(qkv.widths)[2].mul_(factor)
        for output in maps_of(self.output):
            output.weight.mul_(factor)

    def start_past(self, context: Context, paths: BeamPaths) -> KeyValueBuffer:
        """Return an empty buffer for the keys and values of decoded tokens."""
        return KeyValueBuffer(paths)

    def step(self, x: Tensor, past: KeyValueBuffer, context: Context = _NO_CONTEXT) -> Tensor:
        """Attend with the newest token of each hypothesis.

        Args:
            x: hidden states of the newest tokens, (B, K, D).
            past: keys and values of the earlier steps; extended by this one.
            context: position bias.

        Returns:
            (B, K, D).
        """
        # All hypotheses are at the same position, so one row of angles is broadcast.
        query, key, value = self._project(x, past.length, 1, context.ways)
        memory = KeyValue(*past.append(key, value))
        mask = self._biased(past.mask, context)
        return self._joined(attend(query, memory, mask, dropout=0.0), context.ways)

    def _project(
        self, x: Tensor, start: int, length: int, ways: Ways | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x (B, T, D), normalized and rotated by position."""
        projected = by_set(self.qkv, x, ways)
        query, key, value = _heads(projected, self.qkv.widths, self.head_width)
        query, key = _normed(query, self.query_norm, ways), _normed(key, self.key_norm, ways)
        if self.rotary is not None:
            query, key = self.rotary(query, key, start, length)
        return query, key, value

    def _biased(self, mask: Tensor | None, context: Context) -> Tensor | None:
        """Combine a mask and the position bias of the scores."""
        bias = context.position_bias
        return mask if bias is None else _masked(self._of_heads(bias), mask)

    def _of_heads(self, bias: Tensor) -> Tensor:
        """Return the rows of a bias (..., H, T, S) that belong to the heads of this layer."""
        if self.kept_heads is None or bias.size(-3) == 1:
            return bias
        return bias.index_select(-3, self.kept_heads)

    def _joined(self, attended: Tensor, ways: Ways | None) -> Tensor:
        if self.inner_norm is not None:
            attended = by_set(self.inner_norm, attended, ways)
        return by_set(self.output, attended, ways)


class CrossAttention(nn.Module):
    """Cross-attention: the target attends to the encoded source.

    During search, the source is projected once, and the K hypotheses of a sentence are its T
    queries, so keys and values are not repeated K times.

    Args:
        d_model: width of the model, D; a multiple of `num_heads` without `head_dim`.
        num_heads: number of heads, H.
        dropout: probability of dropping an attention weight in training.
        num_kv_heads: see `SelfAttention`.
        norms: norms of queries and keys; none of the output.
        make_linear: makes all maps, called like `Linear`.
        head_dim: width of a head, Dh; None for D / H.
        kept_heads: see `SelfAttention`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        num_kv_heads: int | None = None,
        norms: AttentionNorms = _NO_NORMS,
        make_linear: LinearMaker = Linear,
        head_dim: int | None = None,
        kept_heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.head_width = head_dim or d_model // num_heads
        attended, shared = _widths(self.head_width, num_heads, num_kv_heads, kept_heads)
        self.num_heads = attended // self.head_width
        self.dropout = dropout
        self.query = make_linear(d_model, attended, gain=_GAIN)
        self.key_value = make_linear(d_model, 2 * shared, parts=2, gain=_GAIN)
        self.query_norm, self.key_norm = norms.query, norms.key
        self.output = make_linear(attended, d_model)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """Attend to the source.

        Args:
            x: hidden states of the queries (B, T, D).
            context: encoded source and source mask.

        Returns:
            The output (B, T, D), and on request the map (B, H, T, S), see `attend_with_map`.
        """
        memory, mask = self._memory(context), context.source_mask
        query = self._query(x, context.ways)
        dropout = self.dropout if self.training else 0.0
        if context.with_maps:
            attended, weights = attend_with_map(query, memory, mask, dropout=dropout)
            return BodyOutput(by_set(self.output, attended, context.ways), map=weights)
        if context.source_lengths is not None and dropout == 0.0:
            attended = context.source_lengths.attend(query, *memory)
        else:
            attended = attend(query, memory, mask, dropout=dropout)
        return BodyOutput(by_set(self.output, attended, context.ways))

    def scale_parameters(self, factor: float) -> None:
        """Scale the initial maps of values and output, see `ds_seq.models.init`."""
        for key_value in maps_of(self.key_value):
            key_value.weight.chunk(2)[1].mul_(factor)
        for output in maps_of(self.output):
            output.weight.mul_(factor)

    def start_past(self, context: Context, paths: BeamPaths) -> SourcePast:
        """Return the keys and values of the source."""
        # contiguous now, so that the matrix products of the steps need not copy
        return SourcePast(KeyValue(*(x.contiguous() for x in self._memory(context))))

    def step(self, x: Tensor, past: SourcePast, context: Context) -> Tensor:
        """Attend with the newest token of each hypothesis, x (B, K, D); returns (B, K, D)."""
        query = self._query(x, context.ways)
        attended = attend(query, past.memory, context.source_mask, dropout=0.0)
        return by_set(self.output, attended, context.ways)

    def _memory(self, context: Context) -> KeyValue:
        """Return keys and values (B, H', S, Dh) of the encoded source."""
        assert context.source is not None, "cross-attention needs an encoded source"
        ways = context.source_ways
        projected = by_set(self.key_value, context.source, ways)
        key, value = _heads(projected, self.key_value.widths, self.head_width)
        return KeyValue(_normed(key, self.key_norm, ways), value)

    def _query(self, x: Tensor, ways: Ways | None) -> Tensor:
        (query,) = _heads(by_set(self.query, x, ways), self.query.widths, self.head_width)
        return _normed(query, self.query_norm, ways)


def _normed(x: Tensor, norm: nn.Module | None, ways: Ways | None) -> Tensor:
    """Normalize each head of x (B, H, T, Dh)."""
    if norm is None:
        return x
    return norm(x) if ways is None else by_set(norm, x.transpose(1, 2), ways).transpose(1, 2)
