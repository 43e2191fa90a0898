"""The norms that a model may use."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer": nn.LayerNorm}
"""By name: (width of the normalized dimension, epsilon added to the variance) -> norm."""
