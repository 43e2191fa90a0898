"""How a model knows the order of its tokens."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.positions import POSITIONS, PositionBias, RotaryPositions


def make_rows(cfg: TransformerConfig) -> nn.Module | None:
    """What a stack adds to its embedded tokens, if anything."""
    make = POSITIONS[cfg.positions.name].rows
    return None if make is None else make(cfg.d_model, cfg.max_positions)


def make_rotary(cfg: TransformerConfig) -> RotaryPositions | None:
    """What turns the queries and keys of one self-attention, if anything."""
    make = POSITIONS[cfg.positions.name].rotary
    return None if make is None else make(cfg.d_model // cfg.num_heads)


def make_bias(cfg: TransformerConfig, causal: bool) -> PositionBias | None:
    """What one self-attention adds to its scores by distance, if anything."""
    make = POSITIONS[cfg.positions.name].bias
    return None if make is None else make(cfg.num_heads, causal)
