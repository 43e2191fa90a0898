"""Mixers: the bodies in which tokens look at each other, or at the source."""

from __future__ import annotations

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build.positions import make_rotary
from ds_seq.modules.attention import CrossAttention, SelfAttention


def make_self_mixer(cfg: TransformerConfig, causal: bool) -> SelfAttention:
    """Tokens look at each other, or, causally, at the past."""
    rotary = make_rotary(cfg)
    return SelfAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout, causal, rotary)


def make_cross_mixer(cfg: TransformerConfig) -> CrossAttention:
    """Target tokens look at the source."""
    return CrossAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout)
