"""The residual connection around a sub-layer, with its norm and dropout.

This module has a faster dropout for CPUs. PyTorch's CPU dropout draws one Bernoulli variable per
element, which costs more than layer norm and activation together for the widths used here. On a
CPU, we draw 64 random bits at a time and use 16 of them per element, which is about 3.5 times
faster. The keep probability is a multiple of 2**-16, and the scale is its exact inverse, so the
result stays unbiased. The bits come from PyTorch's default generator, so `torch.manual_seed` and
activation checkpointing control them as usual.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.modules.linear import by_set

if TYPE_CHECKING:
    from ds_seq.modules.multiway import Ways

_LEVELS = 2**16
_PER_WORD = 4  # 16-bit draws in one 64-bit word


class Residual(nn.Module):
    """Pre-norm: `scale x + dropout(f(norm(x)))`. Post-norm: `norm(scale x + dropout(f(x)))`.

    The sub-layer f stays outside (it may return more than a tensor): call `enter` before it and
    `leave` after it.

    Args:
        norm: module that normalizes the last dimension.
        dropout: probability of dropping an element of f's output in training.
        pre_norm: whether to normalize f's input instead of the sum (Xiong et al., 2020).
        drop_path: probability that a sentence skips f in training (Huang et al., 2016). The output
            of f is divided by the probability of keeping it.
        scale: factor of x in the sum; above 1 for DeepNorm.
    """

    def __init__(
        self,
        norm: nn.Module,
        dropout: float,
        pre_norm: bool,
        drop_path: float,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.scale = scale
        self.drop_path = drop_path
        self.norm = norm

    def enter(self, x: Tensor, ways: Ways | None = None) -> Tensor:
        """Return the sub-layer's input for x (B, T, D), whose tokens use sets of parameters."""
        return by_set(self.norm, x, ways) if self.pre_norm else x

    def leave(self, x: Tensor, y: Tensor, ways: Ways | None = None) -> Tensor:
        """Add the sub-layer's output y (B, T, D) to x (B, T, D)."""
        y = dropout(y, self.dropout, self.training)
        if self.training and self.drop_path > 0.0:
            y = y * dropout_noise(y, (y.size(0), 1, 1), self.drop_path)
        x = x + y if self.scale == 1.0 else torch.add(y, x, alpha=self.scale)
        return x if self.pre_norm else by_set(self.norm, x, ways)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability `p` and divide the others by the keep probability."""
    if not training or p == 0.0:
        return x
    if x.device.type == "cpu":
        return x * _cpu_noise(x, x.shape, p)
    return F.dropout(x, p)


def dropout_noise(like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Return dropout multipliers of this shape, in the dtype and on the device of `like`."""
    if like.device.type == "cpu":
        return _cpu_noise(like, shape, p)
    return F.dropout(like.new_ones(shape), p)


def _cpu_noise(like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Return multipliers: 0 with probability `p`, else the inverse of the keep probability."""
    dropped = round(p * _LEVELS)
    if dropped >= _LEVELS:
        return like.new_zeros(shape)
    size = math.prod(shape)
    words = torch.empty((size + _PER_WORD - 1) // _PER_WORD, dtype=torch.int64)
    words.random_(-(2**63), None)  # the full range: every bit is random, the sign included
    draws = words.view(torch.int16)[:size].view(shape)
    return draws.ge(dropped - _LEVELS // 2).to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped))
