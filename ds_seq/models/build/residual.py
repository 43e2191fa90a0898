"""Build the residual around a sub-layer, and the norm after the last layer."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build.norm import make_norm
from ds_seq.modules.residual import Residual


def make_residual(cfg: TransformerConfig) -> Residual:
    """Make the residual around one sub-layer."""
    return Residual(make_norm(cfg), cfg.dropout, cfg.norm_position == "pre")


def make_final_norm(cfg: TransformerConfig) -> nn.Module | None:
    """Make the final norm of a pre-norm stack; None for post-norm."""
    return make_norm(cfg) if cfg.norm_position == "pre" else None
