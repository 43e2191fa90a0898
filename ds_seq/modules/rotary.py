"""Positions as rotations of queries and keys, so that scores depend on distances only.

Used in self-attention only; cross-attention relates positions of two different texts.

Shapes: T positions, Dh width of one attention head, H heads of the queries, H' of the keys.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds_seq.modules.positions import PositionTable
from ds_seq.names import RotaryScaling

_YARN_FAST, _YARN_SLOW = 32, 1  # rotations within the original length, see Peng et al., section 3.2


class RotaryScale(NamedTuple):
    """How angles are scaled for texts longer than those of the training."""

    scaling: RotaryScaling
    """See `RotaryPositions`."""
    factor: float
    """By how much texts are longer."""
    original_length: int | None
    """Longest text of the training, for `yarn`."""


class RotaryPositions(nn.Module):
    """Rotary embedding (Su et al., 2021, https://arxiv.org/abs/2104.09864).

    The pair i of the features of a head is rotated by the angle `p * theta ** (-2 i / Dh)` at
    position p. Angles and rotations are computed in float32 whatever the precision of the model.

    A model can be used on longer texts than it was trained on if its angles are scaled: `linear`
    divides positions by `factor` (Chen et al., 2023, https://arxiv.org/abs/2306.15595); `ntk`
    raises theta to `theta * factor ** (Dh / (Dh - 2))`, so that slow rotations are stretched by
    `factor` and fast ones are kept; `yarn` stretches the rotations that are slow with respect to
    `original_length`, keeps the fast ones, interpolates between, and sharpens attention by
    `0.1 ln(factor) + 1` on both sides (Peng et al., 2023, https://arxiv.org/abs/2309.00071).

    Args:
        head_width: Dh, even.
        theta: base of the angles.
        interleaved: whether the pairs are (2 i, 2 i + 1), as in the paper, and not (i, i + Dh / 2).
        scale: how to scale angles for longer texts, or None.

    Raises:
        ValueError: the width is odd.
    """

    def __init__(
        self,
        head_width: int,
        theta: float,
        interleaved: bool,
        scale: RotaryScale | None = None,
    ) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {head_width}")
        self.theta, self.interleaved = theta, interleaved
        self.scale = scale or RotaryScale("none", 1.0, None)
        self._table = PositionTable(self._rows, head_width)

    def forward(self, query: Tensor, key: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by positions `start .. start + length - 1`.

        Args:
            query: (..., H, length, Dh), or any length that a length of 1 is broadcast to.
            key: (..., H', length, Dh).
            start: position of the first of them.
            length: number of positions.
        """
        cos, sin = self._table.rows(start, length, query.device).chunk(2, dim=-1)
        return self._rotate(query, cos, sin), self._rotate(key, cos, sin)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the pairs of x (..., T, Dh) by angles (T, Dh / 2)."""
        if torch.is_grad_enabled() and x.requires_grad:
            turned: Tensor = _Rotation.apply(x, cos, sin, self.interleaved)
            return turned
        return _rotated(x, cos, sin, self.interleaved)

    def _rows(self, count: int, width: int) -> Tensor:
        """Return `[cos, sin]` of the angles of the first `count` positions, (count, Dh)."""
        angles = torch.arange(count, dtype=torch.float32)[:, None] * self.frequencies(width)
        is_yarn = self.scale.scaling == "yarn"
        gain = 0.1 * math.log(self.scale.factor) + 1.0 if is_yarn else 1.0
        return torch.cat([angles.cos(), angles.sin()], dim=1) * gain

    def frequencies(self, width: int) -> Tensor:
        """Return the angles per position (Dh / 2,), fastest first, in float32."""
        half, theta = width // 2, self.theta
        scaling, factor, original_length = self.scale
        if scaling == "ntk" and width > 2:
            theta *= factor ** (width / (width - 2))
        frequencies: Tensor = theta ** (-torch.arange(half, dtype=torch.float32) / half)
        if scaling == "linear":
            return frequencies / factor
        if scaling == "yarn":
            assert original_length is not None, "yarn needs the original length"
            kept = self._kept(half, original_length)
            return frequencies * kept + frequencies / factor * (1.0 - kept)
        return frequencies

    def _kept(self, half: int, original_length: int) -> Tensor:
        """Return how much of each frequency `yarn` keeps (Dh / 2,): 1 for the fast ones."""

        def pair_with(rotations: float) -> float:
            """Return the pair, as a fraction, that rotates this often within the length."""
            wave = original_length / (rotations * 2 * math.pi)
            return half * math.log(wave) / math.log(self.theta)

        fast = max(math.floor(pair_with(_YARN_FAST)), 0)
        slow = min(math.ceil(pair_with(_YARN_SLOW)), 2 * half - 1)
        ramp = (torch.arange(half, dtype=torch.float32) - fast) / max(slow - fast, 1e-3)
        return 1.0 - ramp.clamp(0.0, 1.0)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate, see `RotaryPositions`.

    Passes go over whole heads: a CPU is slow where rows of half a head are not next to each other.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if interleaved:
        if wide.stride(-1) != 1:
            wide = wide.contiguous()
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    else:
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat([second, first], dim=-1).mul_(torch.cat([-sin, sin], dim=-1))
        turned.addcmul_(wide, torch.cat([cos, cos], dim=-1))
    return turned.to(x.dtype)


class _Rotation(torch.autograd.Function):
    """A rotation; its gradient is the rotation back, for which the input need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin, ctx.interleaved), None, None, None


class XPositions(RotaryPositions):
    """xPos (Sun et al., 2022, https://arxiv.org/abs/2212.10554): a rotation with a decay.

    In a causal self-attention, the score of pair i decays with the distance n between query and
    key by the factor `zeta_i ** (n / scale_base)`, `zeta_i = (2 i / Dh + 0.4) / 1.4`: queries are
    multiplied by the decay at their position, and keys are divided by it. Where a query also sees
    later keys, a product of this form would grow with their distance, so that an encoder only
    rotates.

    Args:
        head_width: Dh, even.
        causal: whether queries see the past only.
        center: position whose scale is 1. Only differences matter, but numbers stay in range if it
            is near the middle of the text.
        theta: base of the angles.
        scale_base: distance at which a score has decayed by zeta.
        interleaved: see `RotaryPositions`.
    """

    def __init__(
        self,
        head_width: int,
        causal: bool,
        center: int,
        theta: float,
        scale_base: float,
        interleaved: bool,
    ) -> None:
        super().__init__(head_width, theta, interleaved)
        self.causal, self.center, self.scale_base = causal, center, scale_base
        self._scales = PositionTable(self._scale_rows, head_width)

    def forward(self, query: Tensor, key: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Rotate and scale queries and keys, see `RotaryPositions.forward`."""
        if not self.causal:
            return super().forward(query, key, start, length)
        cos, sin = self._table.rows(start, length, query.device).chunk(2, dim=-1)
        scale = self._scales.rows(start, length, query.device)
        return (
            self._rotate(query, cos * scale, sin * scale),
            self._rotate(key, cos / scale, sin / scale),
        )

    def _scale_rows(self, count: int, width: int) -> Tensor:
        """Return the scales of queries at the first `count` positions, (count, Dh / 2)."""
        zeta = (torch.arange(0, width, 2, dtype=torch.float32) / width + 0.4) / 1.4
        power = (torch.arange(count, dtype=torch.float32) - self.center) / self.scale_base
        return zeta ** power[:, None]
