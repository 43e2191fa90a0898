"""Constant numbers by position.

Shapes: T positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
