"""Build position encodings."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.positions import POSITIONS, PositionBias, RotaryPositions


def make_rows(cfg: TransformerConfig) -> nn.Module | None:
    """Make the positions that a stack adds to its embedded tokens, if any."""
    make = POSITIONS[cfg.positions.name].rows
    return None if make is None else make(cfg.d_model, cfg.max_positions)


def make_rotary(cfg: TransformerConfig) -> RotaryPositions | None:
    """Make the rotation of queries and keys of a self-attention, if any."""
    make = POSITIONS[cfg.positions.name].rotary
    return None if make is None else make(cfg.d_model // cfg.num_heads)


def make_bias(cfg: TransformerConfig, causal: bool) -> PositionBias | None:
    """Make the bias by distance of a self-attention's scores, if any."""
    make = POSITIONS[cfg.positions.name].bias
    return None if make is None else make(cfg.num_heads, causal)
