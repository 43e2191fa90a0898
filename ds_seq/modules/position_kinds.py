"""The kinds of positions: vectors added to tokens, rotated queries and keys, or biased scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ds_seq.modules.position_bias import AlibiBias, BucketBias
from ds_seq.modules.positions import LearnedPositions, SinusoidalPositions
from ds_seq.modules.rotary import RotaryPositions, RotaryScale, XPositions


class PositionKind(NamedTuple):
    """How a model encodes positions: by vectors added to tokens, or inside self-attention.

    Each function also receives the options of its section in the experiment file by their names.
    """

    rows: Callable[..., nn.Module] | None = None
    """(width D, largest number of positions) -> module like `SinusoidalPositions`, or None."""
    rotary: Callable[..., RotaryPositions] | None = None
    """(width of a head, whether attention is causal, largest number of positions) -> rotation of
    queries and keys, or None."""
    bias: Callable[..., nn.Module] | None = None
    """(number of heads H, whether attention is causal) -> bias of the scores of all
    self-attentions of a stack, a `ds_seq.modules.position_bias.PositionBias`; or None."""


POSITIONS: dict[str, PositionKind] = {
    "sinusoidal": PositionKind(rows=lambda width, _, **more: SinusoidalPositions(width, **more)),
    "learned": PositionKind(rows=lambda width, count: LearnedPositions(count, width)),
    "none": PositionKind(),
    "rotary": PositionKind(
        rotary=lambda width, _, __, theta, interleaved, **scale: RotaryPositions(
            width, theta, interleaved, RotaryScale(**scale)
        )
    ),
    "xpos": PositionKind(
        rotary=lambda width, causal, count, **more: XPositions(width, causal, count // 2, **more)
    ),
    "alibi": PositionKind(bias=AlibiBias),
    "buckets": PositionKind(bias=BucketBias),
}
"""Kinds of positions by their name in an experiment file."""
