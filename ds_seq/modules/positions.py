"""Where a token stands: rows added to tokens, a rotation of q and k, or a bias by distance.

Positions count from 0 at the first token of a row; padding is on the right, so a token's position
never depends on its batch mates.

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
    """A constant table with one row per position, computed in fp32 and cast where it is used.

    It is a plain object and not a buffer: `model.half()` must not round it, and it takes no part
    in state dicts. It grows when a longer sequence comes along.
    """

    def __init__(self, build: Callable[[int, int], Tensor], width: int) -> None:
        self._build = build
        self._width = width
        self._rows = torch.empty(0, width)

    def rows(self, start: int, length: int, like: Tensor) -> Tensor:
        """Rows `start .. start + length - 1` in the dtype and on the device of `like`."""
        stop = start + length
        table = self._rows
        if stop > len(table) or table.device != like.device or table.dtype != like.dtype:
            count = max(_INITIAL_ROWS, len(table), 1 << (stop - 1).bit_length())
            # Decoding runs in inference mode; a table made there could never be trained with.
            with torch.inference_mode(False), torch.no_grad():
                table = self._build(count, self._width).to(like.device, like.dtype)
            self._rows = table
        return table[start:stop]


def sinusoidal_rows(count: int, width: int) -> Tensor:
    """The fixed table of Vaswani et al. (2017), sines in the first half and cosines in the second.

    Row p is `[sin(p f_0) .. sin(p f_{n-1}), cos(p f_0) .. cos(p f_{n-1})]` with n = width / 2 and
    `f_i = 10000 ** (-i / (n - 1))`, as tensor2tensor and fairseq lay it out.
    """
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / max(half - 1, 1))
    )
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rotary_rows(count: int, width: int) -> Tensor:
    """`[cos, sin]` of the angles `p * 10000 ** (-2 i / width)` for i < width / 2."""
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
    """One trained vector per position, up to `max_positions`."""

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.weight = nn.Parameter(torch.empty(max_positions, d_model))

    def draw_parameters(self) -> None:
        """Normal with deviation D ** -0.5. See `ds_seq.models.init`."""
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
    """Rotary embedding (Su et al., 2021): turns q and k, so scores depend on distances only.

    The pair (i, i + Dh / 2) of a head is turned by the angle `p * 10000 ** (-2 i / Dh)`.
    Used in self-attention; cross-attention compares two different texts and stays unrotated.
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
    """A module that says what distances add to the scores of self-attention."""

    def __call__(self, distances: Tensor) -> Tensor:
        """Bias (..., H, T, S).

        Args:
            distances: (..., T, S) int64, position of the query less that of the key; negative where
                an encoder looks ahead. In a search, that of a hidden key may be any.
        """


class PositionKind(NamedTuple):
    """Where a model learns of positions: in what is added to tokens, or inside self-attention."""

    rows: Callable[[int, int], nn.Module] | None = None
    """(width D, most positions) -> module called like `SinusoidalPositions`, or None."""
    rotary: Callable[[int], RotaryPositions] | None = None
    """Width of a head -> what turns queries and keys, or None."""
    bias: Callable[[int, bool], PositionBias] | None = None
    """(number of heads H, whether a query sees the past only) -> module of one self-attention that
    biases its scores, or None."""


POSITIONS: dict[str, PositionKind] = {
    "sinusoidal": PositionKind(rows=lambda width, _: SinusoidalPositions(width)),
    "learned": PositionKind(rows=lambda width, count: LearnedPositions(count, width)),
    "rotary": PositionKind(rotary=RotaryPositions),
}
"""By the name that an experiment has for them."""
