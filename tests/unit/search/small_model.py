"""A Transformer of random weights that says different things in different places."""

from __future__ import annotations

import torch

from ds_seq.config.model import MoeConfig, TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer

VOCAB = 19


def make_model(moe: MoeConfig | None, decoder_layers: int = 2) -> Seq2SeqTransformer:
    config = TransformerConfig(
        d_model=16,
        ffn_dim=24,
        num_heads=2,
        encoder_layers=2,
        decoder_layers=decoder_layers,
        moe=moe,
    )
    model = build_seq2seq(config, VOCAB, 1, 0, seed=3).eval()
    with torch.no_grad():  # an untrained model says nearly the same everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model
