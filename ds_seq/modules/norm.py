"""The norms that a model can be made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer": nn.LayerNorm}
"""By name: (width of the normalized dimension, what is added to the variance) -> norm."""
