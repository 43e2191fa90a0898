"""The `model.moe` section: where experts stand, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ds_seq.config.model import ExternalRouterConfig, MoeConfig, TransformerConfig
from ds_seq.config.model.router import ROUTERS
from tests.unit.config.fixture_types import MakeConfig

ENCODER = {"placement": "encoder"}
GUIDE = Path(__file__).parents[3] / "docs" / "EXPERTS.md"
RECIPES = [
    line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("moe: {")
]


def model(moe: dict[str, Any], **fields: Any) -> TransformerConfig:
    sizes = {"encoder_layers": 4, "decoder_layers": 3}
    return TransformerConfig.model_validate({**sizes, "moe": moe, **fields})


@pytest.mark.parametrize(
    ("moe", "encoder", "decoder"),
    [
        ({"placement": "encoder", "every": 2}, [1, 3], []),
        ({"placement": "decoder", "every": 3}, [], [2]),
        ({"placement": "both", "every": 1}, [0, 1, 2, 3], [0, 1, 2]),
        ({"placement": "both", "every": 4}, [3], []),
        ({"layers": {"encoder": [3, 0], "decoder": [1]}}, [0, 3], [1]),
        ({"layers": {"decoder": [0]}, "every": 2}, [], [0]),
        ({"layers": {"encoder": [2]}, "placement": "encoder"}, [2], []),
    ],
)
def test_which_layers_have_experts(
    moe: dict[str, Any], encoder: list[int], decoder: list[int]
) -> None:
    config = model({"num_experts": 6, **moe})
    assert (config.moe_layers("encoder"), config.moe_layers("decoder")) == (encoder, decoder)
    assert [i for i in range(4) if config.experts_in("encoder", i)] == encoder
    assert [i for i in range(3) if config.experts_in("decoder", i)] == decoder
    assert config.num_moe_layers == len(encoder) + len(decoder)
    assert config.experts_per_layer == [6] * config.num_moe_layers


def test_a_list_gives_each_layer_its_count() -> None:
    config = model({"num_experts": [2, 4, 8], "layers": {"encoder": [3, 1], "decoder": [0]}})
    assert config.experts_per_layer == [2, 4, 8]
    counts = [config.experts_in("encoder", i) for i in range(4)]
    assert (counts, config.experts_in("decoder", 0)) == ([0, 2, 0, 4], 8)
    assert config.experts_in("decoder", 1) == 0


def test_a_dense_model_has_none() -> None:
    config = TransformerConfig()
    assert (config.num_moe_layers, config.experts_per_layer) == (0, [])
    assert config.experts_in("encoder", 1) == 0


@pytest.mark.parametrize(
    ("moe", "words"),
    [
        # counts and layers
        (
            {"num_experts": 0},
            "num_experts\n.*a whole number of at least 1, or a list of them, not 0",
        ),
        ({"num_experts": []}, r"or a list of them, not \[\]"),
        ({"num_experts": [4, 0, 4]}, r"or a list of them, not \[4, 0, 4\]"),
        ({"num_experts": True}, "or a list of them, not true"),
        ({"num_experts": "many"}, "or a list of them, not 'many'"),
        ({"num_experts": 2.0}, "or a list of them, not 2.0"),
        ({"top_k": 9}, "top_k: 9 is more than num_experts 8"),
        ({"top_k": 3, "num_experts": [4, 2, 4]}, "top_k: 3 is more than num_experts 2"),
        ({"top_k": 0}, "top_k"),
        ({"every": 5}, "moe.every: no layer has experts: 5 is more than the layers"),
        ({"layers": {}}, "moe.layers: no layer has experts: empty"),
        ({"layers": {"encoder": [4]}}, "moe.layers.encoder: 4, but encoder_layers is 4"),
        ({"layers": {"decoder": [0, 3]}}, "moe.layers.decoder: 3, but decoder_layers is 3"),
        ({"layers": {"encoder": [1, 1]}}, r"layers.encoder: lists a layer twice: \[1, 1\]"),
        ({"layers": {"encoder": [-1]}}, "layers.encoder"),
        (
            {"layers": {"decoder": [1]}, "placement": "encoder"},
            "layers.decoder: placement is encoder; set placement to both",
        ),
        (
            {"num_experts": [4, 4]},
            r"moe.num_experts: 2 counts for 3 MoE layers \(encoder \[1, 3\], decoder \[1\]\)",
        ),
        # routers
        ({"router": "best"}, "router"),
        ({"router": "expert_choice"}, "router: expert_choice looks at the whole sentence"),
        (
            {"router": "expert_choice", "placement": "decoder"},
            "router: expert_choice looks at the whole sentence",
        ),
        (
            {"router": "expert_choice", "layers": {"encoder": [1], "decoder": [1]}},
            "router: expert_choice looks at the whole sentence",
        ),
        (
            {"router": "expert_choice", **ENCODER, "load_balance": "global"},
            "load_balance: expert_choice is always balanced",
        ),
        (
            {"router": "expert_choice", **ENCODER, "normalize_weights": "after_dropping"},
            "normalize_weights: each expert's own score",
        ),
        (
            {"router": "expert_choice", **ENCODER, "eval_capacity_factor": 1.0},
            "eval_capacity_factor: router expert_choice drops nothing",
        ),
        (
            {"router": "language", "eval_capacity_factor": 1.0},
            "eval_capacity_factor: router language drops nothing",
        ),
        ({"router": "hash", "noise": "jitter"}, "noise: router hash supports none"),
        ({"router": "hash", "load_balance": "global"}, "load_balance: router hash cannot be"),
        ({"router": "language", "noise": "jitter"}, "noise: router language supports none"),
        (
            {"router": "expert_choice", **ENCODER, "noise": "gumbel"},
            "noise: router expert_choice supports none",
        ),
        ({"router": "sigmoid", "noise": "gumbel"}, "noise: sigmoid scores are not a distribution"),
        ({"router": "sigmoid", "bias_rate": -1}, "bias_rate"),
        ({"router_dim": 8}, "router_dim: applies to router cosine, not softmax"),
        ({"router": "cosine", "router_dim": 0}, "router_dim"),
        ({"second_expert": "random"}, "second_expert: random needs top_k 2 and softmax or cosine"),
        ({"second_expert": "sampled", "top_k": 3}, "second_expert: sampled needs top_k 2"),
        (
            {"second_expert": "random", "top_k": 2, "router": "sigmoid"},
            "second_expert: random needs top_k 2 and softmax or cosine",
        ),
        # capacity and weights
        ({"capacity_factor": 0}, "capacity_factor"),
        ({"eval_capacity_factor": -1}, "eval_capacity_factor"),
        ({"min_capacity": -1}, "min_capacity"),
        ({"drop": "last"}, "drop"),
        ({"normalize_weights": True}, "normalize_weights"),
        ({"output_masking": 1.0}, "output_masking"),
        ({"load_balance": "world"}, "load_balance"),
        # branches
        (
            {"residual": True, "shared_experts": 1},
            "shared_experts: cannot be combined with residual",
        ),
        (
            {"residual": True, "conditional_budget": 0.5},
            "conditional_budget: cannot be combined with residual; use only one of them",
        ),
        (
            {"shared_experts": 1, "conditional_budget": 0.5},
            "conditional_budget: cannot be combined with shared_experts",
        ),
        ({"conditional_dropout": 0.1}, "conditional_dropout: needs conditional_budget"),
        ({"conditional_budget": 0.0}, "conditional_budget"),
        ({"conditional_budget": 1.5}, "conditional_budget"),
    ],
)
def test_what_cannot_be_is_refused(moe: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        model(moe)


@pytest.mark.parametrize(
    "moe",
    [
        {"router": "expert_choice", **ENCODER, "capacity_factor": None},
        {"router": "expert_choice", "layers": {"encoder": [0]}},
        {"router": "expert_choice", **ENCODER, "normalize_weights": "none"},
        {"router": "language", "load_balance": "global", "normalize_weights": "before_dropping"},
        {"router": "sigmoid", "noise": "jitter", "top_k": 4},
        {"router": "cosine", "noise": "gumbel", "second_expert": "random", "top_k": 2},
        {"conditional_budget": 1.0, "conditional_dropout": 0.2},
        {"num_experts": [2, 4, 8]},
    ],
)
def test_what_goes_together(moe: dict[str, Any]) -> None:
    assert TransformerConfig.model_validate(model(moe).model_dump(mode="json")) == model(moe)


@pytest.mark.parametrize(
    ("moe", "expected"),
    [
        ({}, "none"),
        ({"top_k": 2}, "after_dropping"),
        ({"top_k": 2, "normalize_weights": "none"}, "none"),
        ({"normalize_weights": "before_dropping"}, "before_dropping"),
        ({"top_k": 2, "router": "expert_choice", **ENCODER}, "none"),
    ],
)
def test_weights_are_scaled_unless_one_expert_is_all_there_is(
    moe: dict[str, Any], expected: str
) -> None:
    assert MoeConfig.model_validate(moe).normalization == expected


def test_all_errors_are_reported_at_once() -> None:
    moe = {"top_k": 9, "router_dim": 4, "conditional_dropout": 0.1}
    with pytest.raises(ValidationError) as caught:
        MoeConfig.model_validate(moe)
    assert all(name in str(caught.value) for name in moe)


def test_routing_by_language_goes_with_tags_in_the_vocabulary(make: MakeConfig) -> None:
    data = dict(make().model_dump(mode="json", exclude_defaults=True)["data"])
    data["vocab"] = {"user_symbols": ["<2de>"]}
    config = make(model={"moe": {"router": "language"}}, data=data)
    assert config.model.moe is not None and config.model.moe.router == "language"


def test_the_guide_has_a_recipe_for_every_router() -> None:
    assert {yaml.safe_load(line)["moe"].get("router", "softmax") for line in RECIPES} == set(
        ROUTERS
    )


OUTSIDE = {"name": "my_lab.routers:Hash", "options": {"salt": 3}}


def test_a_router_from_outside_is_a_name_or_a_section() -> None:
    short = MoeConfig.model_validate({"router": OUTSIDE["name"]})
    assert short.router == ExternalRouterConfig.model_validate({"name": OUTSIDE["name"]})
    full = MoeConfig.model_validate({"router": OUTSIDE})
    assert full.router == ExternalRouterConfig.model_validate(OUTSIDE)
    for moe in (short, full):
        assert MoeConfig.model_validate(moe.model_dump(mode="json")) == moe
    assert MoeConfig.model_validate({"router": {"name": "cosine"}}).router == "cosine"
    assert full.num_params(8, 4) == 0 and full.has_capacity


@pytest.mark.parametrize(
    ("moe", "message"),
    [
        (
            {"router": OUTSIDE, "noise": "jitter"},
            "noise: applies to built-in routers; set options of my_lab.",
        ),
        ({"router": OUTSIDE, "bias_rate": 0.1}, "bias_rate: applies to built-in routers"),
        ({"router": OUTSIDE, "load_balance": "global"}, "in model.moe.router.options"),
        ({"router": OUTSIDE, "top_k": 9}, "top_k: 9 is more than num_experts 8"),
        ({"router": "sofmax"}, "no router 'sofmax' (did you mean 'softmax'?); there are softmax,"),
        ({"router": 3}, "no router 3; there are softmax"),
        ({"router": {"name": "cosine", "options": {}}}, "name"),
        ({"router": {"name": "a:b", "option": {}}}, "option"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_router_is_refused(moe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MoeConfig.model_validate(moe)
    assert message in str(caught.value)


@pytest.mark.parametrize("line", RECIPES)
def test_recipes_of_the_readme_are_valid(line: str) -> None:
    assert TransformerConfig.model_validate(yaml.safe_load(line)).moe is not None
