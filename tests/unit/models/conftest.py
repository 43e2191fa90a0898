"""A small model and a batch with padding on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds_seq.config.model import TransformerConfig
from ds_seq.models import build_seq2seq
from ds_seq.models.seq2seq import Seq2SeqTransformer
from tests.batches import mark_every_third

VOCAB, PAD = 23, 1


class Pairs(NamedTuple):
    """Return source (B, S) and shifted target (B, T), padded on the right."""

    src: Tensor
    tgt: Tensor


def small_config(**options: Any) -> TransformerConfig:
    """Return a config with two layers per stack, width 16 and no dropout, except for `options`."""
    sizes = {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_heads": 2,
        "ffn_dim": 24,
        "dropout": 0.0,
        "max_positions": 64,
    }
    return TransformerConfig.model_validate({**sizes, **options})


@pytest.fixture
def config() -> Callable[..., TransformerConfig]:
    """Provide `config(**options)`, the config of a small model."""
    return small_config


@pytest.fixture
def build() -> Callable[..., Seq2SeqTransformer]:
    """Provide `build(**options)`, a small model; `seed` determines its parameters."""

    def make(seed: int = 1, **options: Any) -> Seq2SeqTransformer:
        model = build_seq2seq(small_config(**options), VOCAB, 1, 0, seed=seed, pad_id=PAD)
        mark_every_third(model)  # many tokens, so that sentences are mixed
        return model

    return make


@pytest.fixture
def pairs() -> Pairs:
    """Four pairs of at most 7 source and 6 target tokens."""
    generator = torch.Generator().manual_seed(3)
    src = torch.randint(4, VOCAB, (4, 7), generator=generator)
    tgt = torch.randint(4, VOCAB, (4, 6), generator=generator)
    for row, (source_length, target_length) in enumerate([(7, 4), (5, 6), (2, 3), (7, 6)]):
        src[row, source_length:] = PAD
        tgt[row, target_length:] = PAD
    return Pairs(src, tgt)
