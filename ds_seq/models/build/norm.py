"""Build norms; all norms of a model are of the same kind."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import TransformerConfig
from ds_seq.modules.norm import NORMS


def make_norm(cfg: TransformerConfig) -> nn.Module:
    """Make a norm of hidden states."""
    return NORMS[cfg.norm.name](cfg.d_model, cfg.norm.eps)
