"""Position encodings: vectors added to tokens, a rotation of queries and keys, or a score bias.

Positions count from 0 at the first token of a row. Padding is on the right, so the position of a
token never depends on the rest of the batch.

Shapes: T positions, D model width, Dh width of one attention head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

_INITIAL_ROWS = 512


class PositionTable:
    """A constant table with one row per position, computed in fp32 and cast on use.

    It is a plain object rather than a buffer: `model.half()` must not round it, and state dicts do
    not contain it. It grows when a longer sequence needs it.
    """

    def __init__(self, build: Callable[[int, int], Tensor], width: int) -> None:
        self._build = build
        self._width = width
        self._rows = torch.empty(0, width)

    def rows(self, start: int, length: int, like: Tensor) -> Tensor:
        """Return rows `start .. start + length - 1` in the dtype and on the device of `like`."""
        stop = start + length
        table = self._rows
        if stop > len(table) or table.device != like.device or table.dtype != like.dtype:
            count = max(_INITIAL_ROWS, len(table), 1 << (stop - 1).bit_length())
            # Decoding runs in inference mode; a table made there could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                table = self._build(count, self._width).to(like.device, like.dtype)
            self._rows = table
        return table[start:stop]


def sinusoidal_rows(count: int, width: int) -> Tensor:
    """Return the table of Vaswani et al. (2017): sines in the first half, then cosines.

    Row p is `[sin(p f_0) .. sin(p f_{n-1}), cos(p f_0) .. cos(p f_{n-1})]` with n = width / 2 and
    `f_i = 10000 ** (-i / (n - 1))`, the layout of tensor2tensor and fairseq.
    """
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / max(half - 1, 1))
    )
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rotary_rows(count: int, width: int) -> Tensor:
    """Return `[cos, sin]` of the angles `p * 10000 ** (-2 i / width)` for i < width / 2."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class SinusoidalPositions(nn.Module):
    """Fixed sinusoidal rows, for sequences of any length."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"sinusoidal positions need an even width, not {d_model}")
        self._table = PositionTable(sinusoidal_rows, d_model)

    def forward(self, x: Tensor, start: int, length: int) -> Tensor:
        """Add rows `start .. start + length - 1` to x (B, length, D); length 1 is broadcast."""
        return x + self._table.rows(start, length, x)


class LearnedPositions(nn.Module):
    """One learned vector per position, up to `max_positions`."""

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.weight = nn.Parameter(torch.empty(max_positions, d_model))

    def draw_parameters(self) -> None:
        """Draw a normal distribution of deviation D ** -0.5."""
        nn.init.normal_(self.weight, std=self.weight.size(1) ** -0.5)

    def forward(self, x: Tensor, start: int, length: int) -> Tensor:
        """Add rows `start .. start + length - 1` to x (B, length, D); length 1 is broadcast."""
        if start + length > self.max_positions:
            raise ValueError(
                f"position {start + length - 1} is beyond the {self.max_positions} learned "
                "positions (model.max_positions)"
            )
        return x + self.weight[start : start + length]


class RotaryPositions(nn.Module):
    """Rotary embedding (Su et al., 2021): rotates q and k; scores depend on distances only.

    The pair (i, i + Dh / 2) of a head is rotated by the angle `p * 10000 ** (-2 i / Dh)`.
    Used in self-attention only; cross-attention relates positions of two different texts.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {head_width}")
        self._table = PositionTable(rotary_rows, head_width)

    def forward(self, x: Tensor, start: int, length: int) -> Tensor:
        """Rotate x (..., length, Dh) by positions `start ..`; length 1 is broadcast."""
        cos, sin = self._table.rows(start, length, x).chunk(2, dim=-1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PositionBias(Protocol):
    """A module that computes a bias of self-attention scores from distances."""

    def __call__(self, distances: Tensor) -> Tensor:
        """Return the bias (..., H, T, S).

        Args:
            distances: (..., T, S) int64, position of the query minus position of the key; negative
                for later keys in an encoder. During search, distances of masked keys are
                arbitrary.
        """


class PositionKind(NamedTuple):
    """How a model encodes positions: by vectors added to tokens, or inside self-attention."""

    rows: Callable[[int, int], nn.Module] | None = None
    """(width D, largest number of positions) -> module like `SinusoidalPositions`, or None."""
    rotary: Callable[[int], RotaryPositions] | None = None
    """Width of a head -> rotation of queries and keys, or None."""
    bias: Callable[[int, bool], PositionBias] | None = None
    """(number of heads H, whether attention is causal) -> bias of the scores of a self-attention,
    or None."""


POSITIONS: dict[str, PositionKind] = {
    "sinusoidal": PositionKind(rows=lambda width, _: SinusoidalPositions(width)),
    "learned": PositionKind(rows=lambda width, count: LearnedPositions(count, width)),
    "rotary": PositionKind(rotary=RotaryPositions),
}
"""Kinds of positions by their name in an experiment file."""
