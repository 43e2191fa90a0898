"""Build the decoder-only model from its components."""

from __future__ import annotations

import torch

from ds_seq.config.model import DecoderOnlyConfig
from ds_seq.models.build.embedding import make_tables
from ds_seq.models.build.ffn import FeedForwards
from ds_seq.models.build.mixer import make_self_mixer
from ds_seq.models.build.residual import scale_initial
from ds_seq.models.build.transformer import make_layer, make_stack
from ds_seq.models.decoder_only import DecoderOnlyTransformer
from ds_seq.models.init import initialize


def build_decoder_only(
    cfg: DecoderOnlyConfig,
    vocab_size: int,
    expert_parallel: int,
    expert_parallel_rank: int,
    seed: int,
    pad_id: int = 1,
) -> DecoderOnlyTransformer:
    """Build and initialize a language model; see `build_seq2seq` for the arguments."""
    feed_forwards = FeedForwards(cfg, expert_parallel, expert_parallel_rank, seed)
    with torch.random.fork_rng(devices=[]):
        layers = [
            make_layer(
                cfg,
                "decoder",
                index,
                self_attention=make_self_mixer(cfg, "decoder", index),
                feed_forward=feed_forwards.make("decoder", index),
            )
            for index in range(cfg.decoder_layers)
        ]
        tables = make_tables(cfg, vocab_size, vocab_size, pad_id)
        model = DecoderOnlyTransformer(
            make_stack(cfg, "decoder", layers), tables.target, tables.output, cfg.max_positions
        )
    if cfg.lora is not None:
        from ds_seq.models.build.lora import add_lora

        add_lora(model, cfg)
    initialize(model, seed)
    scale_initial(model, cfg)
    if cfg.adapters is not None:
        from ds_seq.models.build.adapters import choose_adapters

        choose_adapters(model, cfg.adapters)
    return model
