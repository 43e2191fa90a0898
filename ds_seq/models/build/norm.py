"""Norms: every one of a model is of one kind."""

from __future__ import annotations

from torch import nn

from ds_seq.config.model import ModelConfig
from ds_seq.modules.norm import NORMS


def make_norm(cfg: ModelConfig) -> nn.Module:
    """A norm of hidden states."""
    return NORMS["layer"](cfg.d_model)
