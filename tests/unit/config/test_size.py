"""Parameters counted from the config are those of the built model."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from ds_seq.config.model import ModelSize, TransformerConfig
from ds_seq.models.build import build_seq2seq
from ds_seq.moe.layer import MoeFeedForward

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
        {"moe": {"num_experts": 4, "ffn_dim": 20}},
        {"moe": {"num_experts": [2, 4, 3], "layers": {"encoder": [1], "decoder": [0, 2]}}},
        {"moe": {"router": "cosine"}},
        {"moe": {"router": "cosine", "num_experts": [40, 4]}},
        {"moe": {"router": "cosine", "router_dim": 5}},
        {"moe": {"router": "sigmoid", "num_experts": 4}},
        {"moe": {"router": "language", "num_experts": 4}},
        {"moe": {"router": "hash", "num_experts": 4}},
        {"moe": {"router": "expert_choice", "num_experts": 4, "placement": "encoder"}},
        {"moe": {"shared_experts": 2, "ffn_dim": 5}, "activation": "swiglu"},
        {"moe": {"residual": True, "ffn_dim": 5}},
        {"moe": {"conditional_budget": 0.5}},
        {"norm": {"name": "layer", "eps": 1e-3}},
        {"num_heads": 4, "encoder_layers": 1, "decoder_layers": 1},
        *(
            {"norm_position": norm, "share_embeddings": share, "positions": kind, "activation": act}
            for norm, share, kind, act in product(
                ("pre", "post"),
                ("none", "decoder", "all"),
                ("sinusoidal", "learned", "rotary"),
                ("relu", "gelu", "swiglu"),
            )
        ),
        *(
            {"moe": {"num_experts": 4, "router": router, "placement": "encoder", **branch}}
            | {"activation": act}
            for router, branch, act in product(
                ("softmax", "cosine", "sigmoid", "expert_choice", "language"),
                ({}, {"residual": True}, {"shared_experts": 3}, {"conditional_budget": 0.2}),
                ("relu", "swiglu"),
            )
        ),
    ],
    ids=str,
)
def test_total_is_that_of_the_built_model(fields: dict[str, Any]) -> None:
    config = TransformerConfig.model_validate({**SMALL, **fields})
    model = build_seq2seq(config, VOCAB, 1, 0, seed=1)
    counted = sum(parameter.numel() for parameter in model.parameters())
    size = config.num_params(VOCAB)
    assert size.total == counted
    inside = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert size.experts == inside
    layers = [module for module in model.modules() if isinstance(module, MoeFeedForward)]
    idle = sum(  # what one token does not meet
        sum(p.numel() for p in layer.experts.parameters()) * (count - config.moe.top_k) // count
        for layer, count in zip(layers, config.experts_per_layer, strict=True)
        if config.moe is not None
    )
    assert size.active == counted - idle


def test_a_dense_model_is_all_active() -> None:
    size = TransformerConfig.model_validate(SMALL).num_params(VOCAB)
    assert size == ModelSize(total=size.total, active=size.total, experts=0)


def test_active_counts_top_k_experts_of_each_layer() -> None:
    sizes = [
        TransformerConfig.model_validate(
            {**SMALL, "moe": {"num_experts": 6, "top_k": top_k}}
        ).num_params(VOCAB)
        for top_k in (1, 2, 6)
    ]
    per_expert = sizes[0].experts // (6 * 2)  # two of the five layers have experts
    assert sizes[1].active - sizes[0].active == 2 * per_expert
    assert sizes[2].active == sizes[2].total
    assert len({size.total for size in sizes}) == 1


def test_dense_parts_next_to_experts_are_always_active() -> None:
    def size(**moe: Any) -> ModelSize:
        return TransformerConfig.model_validate({**SMALL, "moe": moe}).num_params(VOCAB)

    plain, shared = size(num_experts=4), size(num_experts=4, shared_experts=2)
    assert shared.experts == plain.experts
    assert shared.active - plain.active == shared.total - plain.total > 0


def test_a_pyramid_counts_each_layer_by_itself() -> None:
    def size(counts: int | list[int]) -> ModelSize:
        moe = {"num_experts": counts}
        return TransformerConfig.model_validate({**SMALL, "moe": moe}).num_params(VOCAB)

    assert size([2, 6]).experts == size(4).experts
    assert size([2, 6]) == size([6, 2])
