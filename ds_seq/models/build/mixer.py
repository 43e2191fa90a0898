"""Build mixers, the bodies in which tokens attend to each other or to the source."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.convolution import AnyConvolutionConfig
from ds_seq.config.model.retention import RetentionConfig
from ds_seq.models.build.linear import linear_maker
from ds_seq.models.build.norm import make_norm
from ds_seq.models.build.positions import make_rotary
from ds_seq.modules.attention import AttentionNorms, CrossAttention, SelfAttention
from ds_seq.modules.body import Body
from ds_seq.modules.linear import LinearMaker
from ds_seq.names import Stack


def make_self_mixer(cfg: TransformerConfig, stack: Stack, layer: int) -> Body:
    """Make what a layer has to mix the tokens of its own text; a decoder sees the past only."""
    causal = stack == "decoder"
    retention, sets = cfg.retention_of(stack), cfg.sets_of(stack)
    if retention is not None:
        return _make_retention(cfg, retention, causal, linear_maker(cfg, sets))
    convolution = cfg.convolution_of(stack)
    if convolution is not None:
        return _make_convolution(cfg, convolution, stack, layer)
    norms = _query_key_norms(cfg, sets)
    if cfg.has_inner_norms:
        width = cfg.num_heads * cfg.head_width(cfg.d_model)
        norms = norms._replace(output=make_norm(cfg, width, sets))
    return _attention_class(cfg, stack)(
        cfg.d_model,
        cfg.num_heads,
        cfg.attention_dropout,
        causal,
        make_rotary(cfg, causal),
        cfg.num_kv_heads,
        norms,
        linear_maker(cfg, sets),
        cfg.head_dim,
        cfg.kept_heads(stack, layer),
    )


def _attention_class(cfg: TransformerConfig, stack: Stack) -> Callable[..., SelfAttention]:
    dilated = cfg.dilated_of(stack)
    if dilated is None:
        return SelfAttention
    from ds_seq.modules.dilated import DilatedAttention  # only where it is used

    return partial(DilatedAttention, segments=dilated.segments)


def _make_retention(
    cfg: TransformerConfig, section: RetentionConfig, causal: bool, make_linear: LinearMaker
) -> Body:
    from ds_seq.modules.retention import Retention, decays_of  # only where it is used

    num_heads = section.heads(cfg.num_heads)
    return Retention(
        cfg.d_model,
        num_heads,
        section.values(cfg.d_model),
        decays_of(section.shortest_memory, section.longest_memory, num_heads),
        causal,
        section.theta,
        section.gate_activation,
        section.eps,
        section.chunk_of,
        make_linear,
    )


def _make_convolution(
    cfg: TransformerConfig, section: AnyConvolutionConfig, stack: Stack, layer: int
) -> Body:
    from ds_seq.modules.convolution import Convolution, make_kernels  # only where it is used

    sets, channels = cfg.sets_of(stack), section.channels(cfg.d_model)
    num_heads, size = section.heads(cfg.num_heads), section.sizes(cfg.layers_of(stack))[layer]
    is_dynamic = section.kernel_map(cfg.d_model, cfg.num_heads, size) > 0
    make_linear = linear_maker(cfg, sets)
    return Convolution(
        cfg.d_model,
        channels,
        make_kernels(channels, num_heads, size, make_linear if is_dynamic else sets),
        num_heads,
        size,
        stack == "decoder",
        section.glu,
        section.weight_softmax,
        section.dropped(cfg.attention_dropout),
        section.input_dropout,
        make_norm(cfg, channels, sets) if cfg.has_inner_norms else None,
        make_linear,
    )


def make_cross_mixer(cfg: TransformerConfig, layer: int) -> Body:
    """Make the attention of a layer's target tokens to the source."""
    sets = cfg.sets_of("decoder")
    return CrossAttention(
        cfg.d_model,
        cfg.num_heads,
        cfg.attention_dropout,
        cfg.num_kv_heads,
        _query_key_norms(cfg, sets),
        linear_maker(cfg, sets),
        cfg.head_dim,
        cfg.kept_heads("cross", layer),
    )


def _query_key_norms(cfg: TransformerConfig, sets: int) -> AttentionNorms:
    if not cfg.query_key_norm:
        return AttentionNorms()
    width = cfg.head_width(cfg.d_model)
    return AttentionNorms(make_norm(cfg, width, sets), make_norm(cfg, width, sets))
