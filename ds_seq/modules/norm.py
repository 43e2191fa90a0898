"""The norms that a model can be made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm}
"""By name: width of the normalized dimension -> norm."""
