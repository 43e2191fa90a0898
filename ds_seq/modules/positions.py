"""Position encodings: vectors added to tokens, a rotation of queries and keys, or a score bias.

Positions count from 0 at the first token of a row. Padding is on the right, so the position of a
token never depends on the rest of the batch.

Shapes: T positions, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.modules.position_bias import AlibiBias, BucketBias
from ds_seq.modules.position_table import PositionTable
from ds_seq.modules.rotary import RotaryPositions, RotaryScale, XPositions
from ds_seq.names import RotaryScaling


def sinusoidal_rows(count: int, width: int) -> Tensor:
    """Return the table of Vaswani et al. (2017): sines in the first half, then cosines.

    Row p is `[sin(p f_0) .. sin(p f_{n-1}), cos(p f_0) .. cos(p f_{n-1})]` with n = width / 2 and
    `f_i = 10000 ** (-i / (n - 1))`, the layout of tensor2tensor and fairseq.
    """
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / max(half - 1, 1))
    )
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SinusoidalPositions(nn.Module):
    """Fixed sinusoidal rows, for sequences of any length."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model % 2:
            raise ValueError(f"sinusoidal positions need an even width, not {d_model}")
        self._table = PositionTable(sinusoidal_rows, d_model)

    def forward(self, x: Tensor, start: int, length: int) -> Tensor:
        """Add rows `start .. start + length - 1` to x (B, length, D); length 1 is broadcast."""
        return x + self._table.rows(start, length, x.device, x.dtype)


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
        if start + length > self.max_positions:
            raise ValueError(
                f"position {start + length - 1} is beyond the {self.max_positions} learned "
                "positions (model.max_positions)"
            )
        return x + self.weight[start : start + length]


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


def _rotary_scale(
    scaling: RotaryScaling, factor: float, original_length: int | None
) -> RotaryScale:
    return RotaryScale(scaling, factor, original_length)


POSITIONS: dict[str, PositionKind] = {
    "sinusoidal": PositionKind(rows=lambda width, _: SinusoidalPositions(width)),
    "learned": PositionKind(rows=lambda width, count: LearnedPositions(count, width)),
    "none": PositionKind(),
    "rotary": PositionKind(
        rotary=lambda width, _, __, theta, interleaved, **scale: RotaryPositions(
            width, theta, interleaved, _rotary_scale(**scale)
        )
    ),
    "xpos": PositionKind(
        rotary=lambda width, causal, count, **more: XPositions(width, causal, count // 2, **more)
    ),
    "alibi": PositionKind(bias=AlibiBias),
    "buckets": PositionKind(bias=BucketBias),
}
"""Kinds of positions by their name in an experiment file."""
