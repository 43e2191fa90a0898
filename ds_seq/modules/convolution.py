"""Lightweight and dynamic convolutions (Wu et al., 2019, https://arxiv.org/abs/1901.10430).

A depthwise convolution whose channels share a kernel per head. The kernels of a lightweight
convolution are parameters of the layer; in a dynamic one, each token makes its own from what the
convolution reads at its place. A softmax normalizes them, in float32.

    y_t = sum_k w_t,k x_(t + k - L)

In a decoder the kernel ends at the token (L = S - 1); in an encoder the token is in its middle
(L = (S - 1) // 2). Outside the text and at padding, x is 0.

Shapes: B batch, T length, D model width, W channels, H heads, S size of the kernels, C tokens in a
block, N blocks; in a search K beam width, R = B K hypotheses (row r belongs to sentence r // K).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.body import BodyOutput, Context
from ds_seq.modules.kv_cache import BeamPaths, KeptSentences, is_identity
from ds_seq.modules.linear import Linear, LinearMaker, by_set, maps_of
from ds_seq.modules.residual import dropout

_BLOCK = 32  # the fastest of 16 to 128 on a CPU: wider bands have more zeros


class FixedKernels(nn.Module):
    """Kernels that are the same at all tokens.

    Args:
        num_heads: number of heads, H.
        size: size of the kernels, S.
    """

    def __init__(self, num_heads: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, size))

    def draw_parameters(self) -> None:
        """Draw Xavier's uniform distribution of a convolution with one input per channel."""
        num_heads, size = self.weight.shape
        bound = math.sqrt(6 / (size + num_heads * size))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the kernels (..., H S) of tokens x (..., W), without a copy for each token."""
        return self.weight.flatten().expand(*x.shape[:-1], -1)


def make_kernels(
    channels: int, num_heads: int, size: int, make_linear: LinearMaker | int
) -> nn.Module:
    """Return what maps channels (..., W) to kernels (..., H S) before the softmax.

    Args:
        channels: number of channels, W.
        num_heads: number of heads, H.
        size: size of the kernels, S.
        make_linear: makes the map of a dynamic convolution; or, for fixed kernels, the number of
            their sets.
    """
    if not isinstance(make_linear, int):
        inputs, outputs = channels, num_heads * size
        gain = math.sqrt((inputs + outputs) / (6 * inputs))  # a deviation that inputs alone decide
        return make_linear(inputs, outputs, gain=gain, bias=False)
    if make_linear == 1:
        return FixedKernels(num_heads, size)
    from ds_seq.modules.multiway import Multiway

    return Multiway([FixedKernels(num_heads, size) for _ in range(make_linear)])


def convolve(x: Tensor, kernels: Tensor, left: int) -> Tensor:
    """Apply kernels as products of banded matrices with blocks of tokens.

    The bands make it one matrix product per block and head, in time and memory that grow with the
    length. On a CPU that is faster than a depthwise convolution or products per token.

    Args:
        x: channels (B, T, W), 0 where there is no token.
        kernels: (B, T, H, S), or (1, 1, H, S) if they are the same everywhere.
        left: how many of the S tokens under a kernel come before its own, L.

    Returns:
        (B, T, W).
    """
    length, (num_heads, size) = x.size(1), kernels.shape[2:]
    block = min(_BLOCK, length)
    missing = -length % block
    width = block + size - 1
    padded = F.pad(x, (0, 0, left, size - 1 - left + missing))
    windows = padded.unfold(1, width, block).unflatten(2, (num_heads, -1))  # (B, N, H, W/H, width)
    if kernels.size(1) == 1:
        rows = kernels.transpose(1, 2).expand(-1, -1, block, -1)[:, None]  # (1, 1, H, C, S)
    else:
        rows = F.pad(kernels, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, block)).transpose(2, 3)
    y = _banded(rows) @ windows.transpose(-1, -2)  # (B, N, H, C, W/H)
    return y.transpose(2, 3).flatten(3).flatten(1, 2)[:, :length]


def _banded(rows: Tensor) -> Tensor:
    """Return matrices (..., C, C + S - 1) in which row c of (..., C, S) begins at column c."""
    block, size = rows.shape[-2:]
    width = block + size - 1
    # with C zeros behind each, the rows in memory are one longer than those of the result
    flat = F.pad(rows, (0, block)).flatten(-2)
    return flat[..., : block * width].unflatten(-1, (block, width))


class ConvolutionPast:
    """The channels of the newest S tokens of each hypothesis.

    Args:
        paths: paths of the beam searches, which know the beam and the position.
        size: size of the kernels, S.
    """

    def __init__(self, paths: BeamPaths, size: int) -> None:
        self._paths, self._size = paths, size
        self._channels: Tensor | None = None  # (R, H, S, W/H); position t is in column t % S

    def add(self, channels: Tensor) -> tuple[Tensor, int]:
        """Add the newest tokens' channels (R, H, W/H); return all columns, and which is newest."""
        newest = (self._paths.length - 1) % self._size
        if self._channels is None:
            rows, heads, width = channels.shape
            self._channels = channels.new_zeros(rows, heads, self._size, width)
        self._channels[:, :, newest] = channels
        return self._channels, newest

    def reorder(self, rows: Tensor) -> None:
        """See `Past`."""
        if self._channels is not None and not is_identity(rows, len(self._channels)):
            self._channels = self._channels.index_select(0, rows)

    def keep_sentences(self, kept: KeptSentences) -> None:
        """See `Past`."""
        if self._channels is not None:
            by_sentence = self._channels.unflatten(0, (-1, self._paths.beam))
            self._channels = kept.apply(by_sentence).flatten(0, 1)


class Convolution(nn.Module):
    """A lightweight or dynamic convolution between two maps, in place of self-attention.

    There is no bias between convolution and output map, whose own bias includes it.

    Args:
        d_model: width of the model, D.
        channels: number of channels, W; a multiple of `num_heads`.
        kernels: what makes the kernels, see `make_kernels`.
        num_heads: number of heads, H.
        size: size of the kernels, S.
        causal: whether position t takes from positions <= t only.
        glu: whether a gated linear unit makes the channels.
        normalizes: whether kernels pass through a softmax.
        weight_dropout: probability of dropping a weight of a token's kernel in training.
        input_dropout: probability of dropping an element of the input in training.
        inner_norm: norm of the channels before the output map, or None.
        make_linear: makes both maps, called like `Linear`.
    """

    def __init__(
        self,
        d_model: int,
        channels: int,
        kernels: nn.Module,
        num_heads: int,
        size: int,
        causal: bool,
        glu: bool,
        normalizes: bool,
        weight_dropout: float,
        input_dropout: float,
        inner_norm: nn.Module | None = None,
        make_linear: LinearMaker = Linear,
    ) -> None:
        super().__init__()
        self.num_heads, self.size, self.causal, self.normalizes = (
            num_heads,
            size,
            causal,
            normalizes,
        )
        self.weight_dropout, self.input_dropout = weight_dropout, input_dropout
        widths = (channels, channels) if glu else (channels,)
        self.input = make_linear(d_model, sum(widths), parts=widths)
        self.kernels = kernels
        self.inner_norm = inner_norm
        self.output = make_linear(channels, d_model)
        self._is_fixed = not maps_of(kernels)

    def forward(self, x: Tensor, context: Context) -> BodyOutput:
        """Convolve whole sequences.

        Args:
            x: hidden states (B, T, D).
            context: which tokens are real. If causal, it is not read: padding is on the right, so
                real tokens never take from it.

        Returns:
            The output (B, T, D); there is no map.
        """
        x = self._channels(dropout(x, self.input_dropout, self.training), context)
        if not self.causal and context.attention_mask is not None:
            assert context.token_mask is not None
            x = x.masked_fill(~context.token_mask[..., None], 0.0)
        kernels = self._kernels(x, context)
        if self.training and self.weight_dropout:
            kernels = dropout(kernels.expand(*x.shape[:2], -1, -1), self.weight_dropout, True)
        left = self.size - 1 if self.causal else (self.size - 1) // 2
        return BodyOutput(self._joined(convolve(x, kernels, left), context))

    def scale_parameters(self, factor: float) -> None:
        """Scale the initial maps of channels and output, see `ds_seq.models.init`."""
        for map in maps_of(self.input):
            map.weight.split(map.widths)[0].mul_(factor)
        for output in maps_of(self.output):
            output.weight.mul_(factor)

    def start_past(self, context: Context, paths: BeamPaths) -> ConvolutionPast:
        """Return an empty state."""
        return ConvolutionPast(paths, self.size)

    def step(self, x: Tensor, past: ConvolutionPast, context: Context) -> Tensor:
        """Convolve up to the newest token of each hypothesis, x (B, K, D); returns (B, K, D)."""
        newest = self._channels(x, context)
        kernels = self._kernels(newest, context).flatten(0, 1)  # (R, H, S) or (1, H, S)
        heads = newest.flatten(0, 1).unflatten(-1, (self.num_heads, -1))
        columns, last = past.add(heads)
        turned = kernels.roll(last + 1, -1)  # its last weight is that of the newest column
        y = turned[..., None, :] @ columns  # (R, H, 1, W/H)
        return self._joined(y.flatten(1).unflatten(0, x.shape[:2]), context)

    def _channels(self, x: Tensor, context: Context) -> Tensor:
        """Return the channels (B, T, W) of hidden states (B, T, D)."""
        value, *gate = by_set(self.input, x, context.ways).split(self.input.widths, dim=-1)
        return value * gate[0].sigmoid() if gate else value

    def _kernels(self, x: Tensor, context: Context) -> Tensor:
        """Return the kernels (B, T, H, S) of channels x (B, T, W), or equal ones (1, 1, H, S)."""
        if self._is_fixed and context.ways is None:
            x = x[:1, :1]
        kernels = by_set(self.kernels, x, context.ways).unflatten(-1, (self.num_heads, self.size))
        if self.normalizes:
            wide = torch.promote_types(kernels.dtype, torch.float32)
            kernels = kernels.softmax(-1, dtype=wide)
        return kernels.to(x.dtype)

    def _joined(self, y: Tensor, context: Context) -> Tensor:
        if self.inner_norm is not None:
            y = by_set(self.inner_norm, y, context.ways)
        return by_set(self.output, y, context.ways)
