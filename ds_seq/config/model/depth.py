"""Constants by which DeepNorm and SubLN keep deep models stable.

Shapes: N encoder layers, M decoder layers; 0 for a model without that stack.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ds_seq.names import Stack


class DepthScale(NamedTuple):
    """The scales of one stack."""

    skip: float = 1.0
    """Factor of the input in each residual sum, alpha."""
    initial: float = 1.0
    """Factor of the initial feed-forwards, values and output maps of attention, beta or gamma."""


def deepnorm(stack: Stack, encoder: int, decoder: int, as_torchscale: bool = False) -> DepthScale:
    """Return the constants of DeepNorm (Wang et al., 2022, https://arxiv.org/abs/2203.00555).

    Args:
        stack: the stack.
        encoder: number of encoder layers, N.
        decoder: number of decoder layers, M.
        as_torchscale: divide the initial encoder of an encoder-decoder by the number by which the
            paper multiplies, up to rounding, as TorchScale's code does.
    """
    if not encoder or not decoder:
        depth = encoder + decoder
        return DepthScale((2 * depth) ** 0.25, (8 * depth) ** -0.25)
    if stack == "decoder":
        return DepthScale((3 * decoder) ** 0.25, (12 * decoder) ** -0.25)
    root = (encoder**4 * decoder) ** (1 / 16)
    return DepthScale(0.81 * root, (1.15 if as_torchscale else 0.87) / root)


def subln(stack: Stack, encoder: int, decoder: int) -> DepthScale:
    """Return the constants of SubLN (Wang et al., 2022, https://arxiv.org/abs/2210.06423).

    Args:
        stack: the stack.
        encoder: number of encoder layers, N.
        decoder: number of decoder layers, M.
    """
    if not encoder or not decoder:
        return DepthScale(initial=math.sqrt(math.log(2 * (encoder + decoder))))
    if stack == "decoder":
        return DepthScale(initial=math.sqrt(math.log(3 * decoder)))
    return DepthScale(initial=math.sqrt(math.log(3 * decoder) * math.log(2 * encoder) / 3))
