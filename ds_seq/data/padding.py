"""Rows of ids of unequal length as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Pad rows on the right to the longest, (B, T) int64; (0, 1) for no rows."""
    width = max(map(len, rows), default=1)
    padded = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).view(len(rows), width)
