"""Build position encodings."""

from __future__ import annotations

from typing import Any

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.position_bias import Window
from ds_seq.modules.position_kinds import POSITIONS
from ds_seq.modules.rotary import RotaryPositions
from ds_seq.names import Stack


def make_rows(cfg: TransformerConfig, stack: Stack) -> nn.Module | None:
    """Make the positions that a stack adds to its embedded tokens, if any."""
    make = POSITIONS[cfg.positions.name].rows
    if make is None or not cfg.has_positions(stack):
        return None
    return make(cfg.d_model, cfg.max_positions, **_options(cfg))


def make_rotary(cfg: TransformerConfig, causal: bool) -> RotaryPositions | None:
    """Make the rotation of queries and keys of a self-attention, if any."""
    make = POSITIONS[cfg.positions.name].rotary
    if make is None:
        return None
    return make(cfg.head_width(cfg.d_model), causal, cfg.max_positions, **_options(cfg))


def make_bias(cfg: TransformerConfig, stack: Stack) -> nn.Module | None:
    """Make the bias by distance of the scores of a stack's self-attentions, if any."""
    if not cfg.has_pairs(stack):
        return None
    causal = stack == "decoder"
    make = POSITIONS[cfg.positions.name].bias
    bias = None if make is None else make(cfg.num_heads, causal, **_options(cfg))
    return bias if cfg.attention_window is None else Window(cfg.attention_window, bias, causal)


def _options(cfg: TransformerConfig) -> dict[str, Any]:
    return {name: value for name, value in cfg.positions if name != "name"}
