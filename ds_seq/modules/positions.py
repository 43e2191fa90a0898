"""Positions as vectors that are added to the embedded tokens; constants by position.

Positions count from 0 at the first token of a row. Padding is on the right, so the position of a
token never depends on the rest of the batch.

Shapes: T positions, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ds_seq.names import SineWavelengths

_INITIAL_ROWS = 512


class PositionTable:
    """A constant table with one row per position, computed and kept in float32.

    It is a plain object rather than a buffer: `model.half()` must not round it, and state dicts do
    not contain it. It grows when a longer sequence needs it.

    Args:
        build: (number of rows, width) -> the rows.
        width: passed to `build`.
    """

    def __init__(self, build: Callable[[int, int], Tensor], width: int) -> None:
        self._build = build
        self._width = width
        self._rows = torch.empty(0, width)

    def rows(
        self, start: int, length: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return rows `start .. start + length - 1`; a table is kept for one dtype only."""
        stop = start + length
        table = self._rows
        if stop > len(table) or table.device != device or table.dtype != dtype:
            count = max(_INITIAL_ROWS, len(table), 1 << (stop - 1).bit_length())
            # Decoding runs in inference mode; a table made there could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                table = self._build(count, self._width).to(device, dtype)
            self._rows = table
        return table[start:stop]


def sinusoidal_rows(count: int, width: int, wavelengths: SineWavelengths) -> Tensor:
    """Return the table of Vaswani et al. (2017): sines in the first half, then cosines.

    Row p is `[sin(p f_0) .. sin(p f_{n-1}), cos(p f_0) .. cos(p f_{n-1})]` with n = width / 2 and
    `f_i = 10000 ** (-i / (n - 1))`, the layout of tensor2tensor and fairseq; or
    `f_i = 10000 ** (-i / n)`, the paper's, if the largest wavelength is `exclusive`.
    """
    half = width // 2
    steps = max(half - 1, 1) if wavelengths == "inclusive" else half
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / steps))
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SinusoidalPositions(nn.Module):
    """Fixed sinusoidal rows, for sequences of any length.

    Args:
        d_model: width of the model, D.
        offset: row of the first token.
        wavelengths: whether the largest wavelength is among them.
    """

    def __init__(self, d_model: int, offset: int, wavelengths: SineWavelengths) -> None:
        super().__init__()
        self.offset = offset
        if d_model % 2:
            raise ValueError(f"sinusoidal positions need an even width, not {d_model}")
        rows = partial(sinusoidal_rows, wavelengths=wavelengths)
        self._table = PositionTable(rows, d_model)

    def forward(self, x: Tensor, start: int, length: int) -> Tensor:
        """Add the rows of positions `start .. start + length - 1` to x (B, length, D).

        A length of 1 is broadcast.
        """
        return x + self._table.rows(self.offset + start, length, x.device, x.dtype)


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
        self.check(start, length)
        return x + self.weight[start : start + length]

    def check(self, start: int, length: int) -> None:
        """Raise `ValueError` if positions `start .. start + length - 1` go beyond the rows."""
        if start + length > self.max_positions:
            raise ValueError(
                f"position {start + length - 1} is beyond the {self.max_positions} learned "
                "positions (model.max_positions)"
            )
