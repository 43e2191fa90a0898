"""Masks of attention."""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(mask: Tensor, like: Tensor) -> Tensor | None:
    """Turn a token mask into one that is added to attention scores.

    Without padding the answer is None, where that is known for free: on a CPU. On a GPU asking
    would stall the queue of kernels, so there the mask is always made.

    Args:
        mask: (B, S) bool, True at real tokens.
        like: gives the dtype.

    Returns:
        (B, 1, 1, S) with 0 at real tokens and -inf at padding, or None.
    """
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    scores = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, float("-inf"))
    return scores[:, None, None, :]
