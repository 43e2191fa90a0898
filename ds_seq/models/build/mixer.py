"""Build mixers, the bodies in which tokens attend to each other or to the source."""

from __future__ import annotations

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build.positions import make_bias, make_rotary
from ds_seq.modules.attention import CrossAttention, SelfAttention
from ds_seq.modules.body import Body


def make_self_mixer(cfg: TransformerConfig, causal: bool) -> Body:
    """Make self-attention; if causal, tokens attend to the past only."""
    rotary, bias = make_rotary(cfg), make_bias(cfg, causal)
    return SelfAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout, causal, rotary, bias)


def make_cross_mixer(cfg: TransformerConfig) -> Body:
    """Make the attention of target tokens to the source."""
    return CrossAttention(cfg.d_model, cfg.num_heads, cfg.attention_dropout)
