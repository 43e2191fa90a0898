"""Tokens that a hypothesis must not take next.

Shapes: N hypotheses, L decoded length, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def block_repeated_ngrams(
    log_probs: Tensor, tokens: Tensor, size: int, exempt: Tensor | None = None
) -> None:
    """Rule out, in place, every token that would complete an n-gram for the second time.

    Args:
        log_probs: (N, V); -inf is written into it.
        tokens: (N, L) decoded so far.
        size: tokens of an n-gram.
        exempt: (N,) bool, hypotheses that may repeat what they like; None: no one.
    """
    length = tokens.size(1)
    num_windows = length - size + 1  # n-grams decoded so far
    if num_windows < 1:
        return
    seen = torch.ones_like(tokens[:, :num_windows], dtype=torch.bool)  # (N, W)
    for offset in range(size - 1):
        newest = tokens[:, length - size + 1 + offset, None]
        seen &= tokens[:, offset : offset + num_windows] == newest
    if exempt is not None:
        seen &= ~exempt[:, None]
    last = tokens[:, size - 1 :]  # (N, W): the last token of each n-gram
    penalty = torch.zeros_like(last, dtype=log_probs.dtype).masked_fill_(seen, -math.inf)
    log_probs.scatter_add_(1, last, penalty)
