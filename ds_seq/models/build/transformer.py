"""Build the encoder-decoder from its components."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ds_seq.config.model import TransformerConfig
from ds_seq.models.build.embedding import make_tables
from ds_seq.models.build.ffn import FeedForwards, routes_by_tag
from ds_seq.models.build.mixer import make_cross_mixer, make_self_mixer
from ds_seq.models.build.norm import make_norm
from ds_seq.models.build.positions import make_bias, make_rows
from ds_seq.models.build.residual import make_final_norm, make_residual, scale_initial
from ds_seq.models.init import initialize
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.models.stack import Stack, SubLayer, TransformerLayer
from ds_seq.modules.body import Body
from ds_seq.names import Stack as StackName

if TYPE_CHECKING:
    from ds_seq.modules.multiway import Ways


def build_seq2seq(
    cfg: TransformerConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
    source_vocab_size: int | None = None,
) -> Seq2SeqTransformer:
    """Build and initialize a Transformer.

    Args:
        cfg: config of the model.
        vocab_size: size of the vocabulary of the target.
        expert_parallel: number of ranks over which the experts of a layer are distributed.
        expert_parallel_rank: index of this process among them.
        seed: seed of all parameters, whose values do not depend on `expert_parallel`.
        pad_id: id of the padding token.
        source_vocab_size: size of the vocabulary of the source; None: as that of the target.
    """
    feed_forwards = FeedForwards(cfg, expert_parallel, expert_parallel_rank, seed)
    # PyTorch's modules draw parameters on construction, which `initialize` replaces: restore the
    # global random state.
    with torch.random.fork_rng(devices=[]):
        tables = make_tables(cfg, vocab_size, source_vocab_size or vocab_size, pad_id)
        model = Seq2SeqTransformer(
            encoder=_encoder(cfg, feed_forwards),
            decoder=_decoder(cfg, feed_forwards),
            target_embedding=tables.target,
            source_embedding=tables.source,
            output=tables.output,
            max_positions=cfg.max_positions,
            routes_by_tag=routes_by_tag(cfg),
            markers=_markers(cfg, source_vocab_size or vocab_size),
        )
        if cfg.language_model is not None:
            from ds_seq.models.build.encoder_input import make_encoder_input  # only where used

            sizes = (cfg.d_model, source_vocab_size or vocab_size)
            model.encoder_input = make_encoder_input(cfg.language_model, *sizes, seed, pad_id)
    if cfg.lora is not None:
        from ds_seq.models.build.lora import add_lora

        add_lora(model, cfg)
    initialize(model, seed)
    scale_initial(model, cfg)
    if cfg.adapters is not None:
        from ds_seq.models.build.adapters import choose_adapters

        choose_adapters(model, cfg.adapters)
    return model


def _encoder(cfg: TransformerConfig, feed_forwards: FeedForwards) -> Stack:
    return make_stack(
        cfg,
        "encoder",
        [
            make_layer(
                cfg,
                "encoder",
                index,
                self_attention=make_self_mixer(cfg, "encoder", index),
                feed_forward=feed_forwards.make("encoder", index),
            )
            for index in range(cfg.encoder_layers)
        ],
    )


def _decoder(cfg: TransformerConfig, feed_forwards: FeedForwards) -> Stack:
    return make_stack(
        cfg,
        "decoder",
        [
            make_layer(
                cfg,
                "decoder",
                index,
                self_attention=make_self_mixer(cfg, "decoder", index),
                cross_attention=make_cross_mixer(cfg, index),
                feed_forward=feed_forwards.make("decoder", index),
            )
            for index in range(cfg.decoder_layers)
        ],
    )


def make_layer(
    cfg: TransformerConfig, stack: StackName, index: int, **bodies: Body
) -> TransformerLayer:
    """Make layer `index` of a stack from these bodies in this order, each in a residual."""
    sublayers = {
        name: SubLayer(make_residual(cfg, stack, index), body) for name, body in bodies.items()
    }
    if cfg.has_adapters(stack):
        from ds_seq.models.build.adapters import make_adapters  # only where it is used

        sublayers["adapters"] = make_adapters(cfg)
    return TransformerLayer(sublayers)


def make_stack(cfg: TransformerConfig, stack: StackName, layers: list[TransformerLayer]) -> Stack:
    """Make a stack of these layers, with what stands before and behind them."""
    sets = cfg.sets_of(stack)
    return Stack(
        layers,
        make_rows(cfg, stack),
        make_final_norm(cfg, stack),
        cfg.dropout,
        cfg.activation_checkpointing,
        cfg.layer_drop,
        cfg.repeats_of(stack),
        make_bias(cfg, stack),
        make_norm(cfg, sets=sets) if cfg.embedding_norm else None,
        _way_finder(sets),
    )


def _markers(cfg: TransformerConfig, source_vocab_size: int) -> nn.Module | None:
    """Make what finds the sets of source tokens; which tokens are markers is set later."""
    if cfg.multiway is None:
        return None
    from ds_seq.modules.multiway import Markers

    return Markers(cfg.multiway.num_sets, source_vocab_size)


def _way_finder(sets: int) -> Callable[[Tensor], Ways] | None:
    if sets == 1:
        return None
    from ds_seq.modules.multiway import Ways

    return partial(Ways.of, num_sets=sets)
