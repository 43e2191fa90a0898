"""Build the models of one stack, decoder-only and encoder-only, from their components."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ds_seq.config.model import DecoderOnlyConfig, EncoderOnlyConfig
from ds_seq.models.build.embedding import make_tables
from ds_seq.models.build.ffn import FeedForwards
from ds_seq.models.build.mixer import make_self_mixer
from ds_seq.models.build.norm import make_norm
from ds_seq.models.build.residual import scale_initial
from ds_seq.models.build.transformer import make_layer, make_stack
from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.models.encoder_only import EncoderOnlyTransformer
from ds_seq.models.init import initialize

if TYPE_CHECKING:
    from ds_seq.modules.dense_head import DenseHead

ModelT = TypeVar("ModelT", DecoderOnlyTransformer, EncoderOnlyTransformer)


def build_decoder_only(
    cfg: DecoderOnlyConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
) -> DecoderOnlyTransformer:
    """Build and initialize a language model; see `build_seq2seq` for the arguments."""
    experts = FeedForwards(cfg, expert_parallel, expert_parallel_rank, seed)
    return _build(DecoderOnlyTransformer, cfg, vocab_size, experts, seed, pad_id)


def build_encoder_only(
    cfg: EncoderOnlyConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
) -> EncoderOnlyTransformer:
    """Build and initialize a masked language model; see `build_seq2seq` for the arguments."""
    experts = FeedForwards(cfg, expert_parallel, expert_parallel_rank, seed)

    def make(stack: Any, embedding: Any, output: Any, length: int) -> EncoderOnlyTransformer:
        return EncoderOnlyTransformer(stack, embedding, output, length, _make_head(cfg))

    return _build(make, cfg, vocab_size, experts, seed, pad_id)


def _make_head(cfg: EncoderOnlyConfig) -> DenseHead | None:
    """Make what precedes the projection to the vocabulary; None if nothing does."""
    if not cfg.has_dense_head:
        return None
    from ds_seq.modules.dense_head import DenseHead  # only where it is used

    return DenseHead(cfg.d_model, cfg.activation, make_norm(cfg))


def _build(
    make: Callable[..., ModelT],
    cfg: DecoderOnlyConfig | EncoderOnlyConfig,
    vocab_size: int,
    feed_forwards: FeedForwards,
    seed: int,
    pad_id: int,
) -> ModelT:
    (stack,) = cfg.stacks
    with torch.random.fork_rng(devices=[]):
        layers = [
            make_layer(
                cfg,
                stack,
                index,
                self_attention=make_self_mixer(cfg, stack, index),
                feed_forward=feed_forwards.make(stack, index),
            )
            for index in range(cfg.layers_of(stack))
        ]
        embedding, output = _make_ends(cfg, vocab_size, pad_id)
        made = make_stack(cfg, stack, layers)
        model = make(made, embedding, output, cfg.max_positions)
    _finish(model, cfg, seed)
    return model


def _make_ends(
    cfg: DecoderOnlyConfig | EncoderOnlyConfig, vocab_size: int, pad_id: int
) -> tuple[Any, Any]:
    characters = _make_characters(cfg, vocab_size)
    if cfg.adaptive_bands is not None:
        from ds_seq.models.build.adaptive import make_adaptive  # only where it is used

        embedding, output = make_adaptive(cfg, cfg.adaptive_bands, vocab_size, pad_id)
        return characters or embedding, output
    tables = make_tables(cfg, vocab_size, vocab_size, pad_id)
    return characters or tables.target, tables.output


def _make_characters(cfg: DecoderOnlyConfig | EncoderOnlyConfig, vocab_size: int) -> Any:
    """Make embeddings by bytes; None if tokens are embedded by a table."""
    if cfg.characters is None:
        return None
    from ds_seq.modules.characters import CharacterEmbedding  # only where it is used

    own = cfg.characters
    sizes = own.filters, own.embedding_dim, own.highway_layers, own.max_bytes
    return CharacterEmbedding(*sizes, vocab_size, cfg.d_model, cfg.embedding_scale)


def _finish(model: ModelT, cfg: DecoderOnlyConfig | EncoderOnlyConfig, seed: int) -> None:
    """Add what changes the layers, and draw the weights."""
    if cfg.lora is not None:
        from ds_seq.models.build.lora import add_lora

        add_lora(model, cfg)
    initialize(model, seed)
    scale_initial(model, cfg)
    if cfg.adapters is not None:
        from ds_seq.models.build.adapters import choose_adapters

        choose_adapters(model, cfg.adapters)
