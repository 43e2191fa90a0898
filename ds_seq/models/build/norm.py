"""Build norms; all norms of a model are of the same kind."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.norm import NORMS


def make_norm(cfg: TransformerConfig, width: int | None = None) -> nn.Module:
    """Make a norm of this width; None: of hidden states."""
    return NORMS[cfg.norm.name](width or cfg.d_model, cfg.norm.eps)
