"""Parameters counted from the config are those of the built model."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.config.model import ModelConfig
from ds_seq.config.size import ModelSize, model_size
from ds_seq.models.build import build_seq2seq

VOCAB = 11
SMALL = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 3, "num_heads": 2, "ffn_dim": 12}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_position": "pre", "share_embeddings": "none"},
        {"activation": "swiglu", "share_embeddings": "decoder"},
        {"positions": "learned", "max_positions": 17},
        {"positions": "rotary"},
        {"moe": {"num_experts": 4, "top_k": 2}},
        {"moe": {"num_experts": 3, "placement": "decoder", "every": 1, "residual": True}},
        {"moe": {"num_experts": 2, "placement": "encoder"}, "activation": "swiglu"},
    ],
)
def test_total_is_that_of_the_built_model(fields: dict[str, Any]) -> None:
    config = ModelConfig.model_validate({**SMALL, **fields})
    model = build_seq2seq(config, VOCAB)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model_size(config, VOCAB).total == counted


def test_a_dense_model_is_all_active() -> None:
    size = model_size(ModelConfig.model_validate(SMALL), VOCAB)
    assert size == ModelSize(total=size.total, active=size.total, experts=0)


def test_active_counts_top_k_experts_of_each_layer() -> None:
    sizes = [
        model_size(
            ModelConfig.model_validate({**SMALL, "moe": {"num_experts": 6, "top_k": top_k}}), VOCAB
        )
        for top_k in (1, 2, 6)
    ]
    per_expert = sizes[0].experts // (6 * 2)  # two of the five layers have experts
    assert sizes[1].active - sizes[0].active == 2 * per_expert
    assert sizes[2].active == sizes[2].total
    assert len({size.total for size in sizes}) == 1
