"""The norms that a model may use."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ds_seq.modules.rms_norm import RmsNorm

NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer": nn.LayerNorm, "rms": RmsNorm}
"""By name: (width of the normalized dimension, epsilon added to the variance or mean square) -> a
norm."""
