"""Rows of ids of unequal length as one tensor.

Shapes: B rows, L their greatest length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ds_seq.data.shards import TokenBlock


class Padded(NamedTuple):
    """Rows of ids, padded on the right."""

    ids: Tensor
    """(B, L) int64."""
    mask: Tensor
    """(B, L) bool, True at real tokens."""

    def to(self, device: torch.device) -> Padded:
        """Returns both on a device."""
        return Padded(self.ids.to(device), self.mask.to(device))


def pad_block(block: TokenBlock, pad_id: int, multiple: int = 1) -> Padded:
    """Pad the rows of a block to the longest; (0, 1) for no rows.

    Args:
        block: the rows.
        pad_id: fills them up.
        multiple: L is rounded up to a multiple of this.
    """
    width = -(-int(block.lengths.max(initial=1)) // multiple) * multiple
    real = np.arange(width) < block.lengths[:, None]
    ids = np.full(real.shape, pad_id, np.int64)
    ids[real] = block.tokens
    return Padded(torch.from_numpy(ids), torch.from_numpy(real))


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> Padded:
    """`pad_block` of a list of rows."""
    return pad_block(TokenBlock.of(rows), pad_id)
