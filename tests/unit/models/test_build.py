"""Building models from configs, and the initial parameters."""

from __future__ import annotations

import re

import pytest
import torch
from pydantic import TypeAdapter

from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.models import build_model, build_seq2seq
from ds_seq.models.init import initialize
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.cosine import CosineRouter
from ds_seq.moe.expert_choice import ExpertChoiceRouter
from ds_seq.moe.hash import TokenHashRouter
from ds_seq.moe.language import LanguageRouter
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.moe.router import SoftmaxRouter
from ds_seq.moe.sigmoid import SigmoidRouter
from ds_seq.plugins import trusting
from ds_seq.text.tokenizer import VocabSizes
from tests.batches import encode, score
from tests.system.toys.hash_router import HashRouter
from tests.unit.models.sections import ROUTERS

VOCAB = 23
MOE = {"num_experts": 4, "top_k": 2, "every": 1}


def sparse_layers(model):
    return [name for name, part in model.named_modules() if isinstance(part, MoeFeedForward)]


HASH = "tests.system.toys.hash_router:HashRouter"


def test_a_router_from_outside_gets_sizes_and_options(build, config):
    moe = {**MOE, "router": {"name": HASH, "options": {"salt": 5}}}
    with trusting([HASH]):
        model = build(moe=moe)
    router = model.encoder.layers[0].feed_forward.gate
    assert isinstance(router, HashRouter)
    assert (router.num_experts, router.top_k) == (4, 2)
    assert not torch.equal(router._directions, HashRouter(16, 4, 2, salt=0)._directions)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert config(moe=moe).num_params(VOCAB).total == counted, "it has no parameters"


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (
            "builtins:dict",
            "model.moe.router: builtins:dict gave dict, not a ds_seq.moe.router.Router",
        ),
        ("no_lab:Hash", "model.moe.router: cannot import 'no_lab'"),
        (HASH.replace("HashR", "HasR"), "did you mean 'HashRouter'"),
    ],
)
def test_what_is_no_router_is_refused(build, router, message):
    with trusting([router]), pytest.raises(UserError, match=re.escape(message)):
        build(moe={**MOE, "router": router})


@pytest.mark.parametrize(
    ("placement", "every", "expected"),
    [
        ("both", 1, ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2"]),
        ("both", 2, ["encoder.1", "decoder.1"]),
        ("encoder", 1, ["encoder.0", "encoder.1"]),
        ("decoder", 3, ["decoder.2"]),
    ],
)
def test_sparse_layers_stand_where_the_config_puts_them(build, placement, every, expected):
    model = build(decoder_layers=3, moe={**MOE, "placement": placement, "every": every})
    names = [
        name.removesuffix(".feed_forward").replace(".layers", "") for name in sparse_layers(model)
    ]
    assert names == expected


def test_router_losses_and_statistics_come_from_every_sparse_layer(build, pairs):
    dense, sparse = build(), build(moe=MOE)
    assert score(dense, *pairs).router_losses == {}
    assert score(dense, *pairs).moe_stats == []
    output = score(sparse, *pairs)
    assert [stats.load.sum().item() for stats in output.moe_stats] == [
        2 * (side != 1).sum().item() for side in pairs for _ in range(2)
    ]
    encoder_part = encode(sparse, pairs.src).router_losses
    assert output.router_losses.keys() == encoder_part.keys() != set()
    assert all(output.router_losses[name] > encoder_part[name] for name in encoder_part)


def test_the_start_is_a_function_of_the_seed(build):
    state, random_state = torch.get_rng_state(), None
    first = build(seed=4, moe=MOE).state_dict()
    random_state = torch.get_rng_state()
    assert torch.equal(state, random_state), "building must leave the global random state alone"
    torch.manual_seed(99)
    second, other = (build(seed=seed, moe=MOE).state_dict() for seed in (4, 5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = [name for name in first if first[name].unique().numel() > 2]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_expert_parallel_ranks_start_with_one_model(config):
    cfg = config(moe=MOE)
    whole = build_seq2seq(cfg, VOCAB, 1, 0, seed=4).state_dict()
    halves = [build_seq2seq(cfg, VOCAB, 2, rank, seed=4).state_dict() for rank in range(2)]
    for name, tensor in whole.items():
        if ".experts." in name:
            assert torch.equal(tensor, torch.cat([half[name] for half in halves])), name
        else:
            assert all(torch.equal(tensor, half[name]) for half in halves), name


def test_a_sparse_model_starts_like_its_dense_twin(build):
    dense, sparse = build().state_dict(), build(moe={**MOE, "every": 2}).state_dict()
    common = dense.keys() & sparse.keys()
    assert {"encoder.layers.0.feed_forward.up.weight", "target_embedding.weight"} <= common
    assert all(torch.equal(dense[name], sparse[name]) for name in common)


def layer_of(build, **moe):
    """Return the first sparse layer of a model with these settings."""
    model = build(moe={**MOE, **moe})
    return next(part for part in model.modules() if isinstance(part, MoeFeedForward))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("softmax", SoftmaxRouter),
        ("cosine", CosineRouter),
        ("sigmoid", SigmoidRouter),
        ("expert_choice", ExpertChoiceRouter),
        ("language", LanguageRouter),
        ("hash", TokenHashRouter),
    ],
)
def test_each_router_is_built_by_its_name(build, name, kind):
    layer = layer_of(build, **ROUTERS[name])
    assert type(layer.gate) is kind
    assert (layer.gate.num_experts, layer.gate.top_k) == (4, 2)
    if name not in ("expert_choice", "hash"):
        balanced = layer_of(build, **ROUTERS[name], load_balance="global")
        assert (layer.gate.load_balance, balanced.gate.load_balance) == ("rank", "global")


def test_settings_reach_the_routers(build):
    chance = {"noise": "gumbel", "second_expert": "random"}
    for name in ("softmax", "cosine"):
        choice = layer_of(build, **{**ROUTERS[name], **chance}).gate.choice
        assert (choice.top_k, choice.noise, choice.second_expert) == (2, "gumbel", "random")
        assert not choice.second_by_share
        before = {**ROUTERS[name], **chance, "normalize_weights": "before_dropping"}
        assert layer_of(build, **before).gate.choice.second_by_share
    assert layer_of(build, router="cosine", router_dim=3).gate.projection.shape == (3, 16)
    sigmoid = layer_of(build, router="sigmoid", bias_rate=0.5, noise="jitter").gate
    assert (sigmoid.bias_rate, sigmoid.noise) == (0.5, "jitter")


def test_settings_reach_the_layer(build):
    layer = layer_of(
        build,
        capacity_factor=1.5,
        eval_capacity_factor=2.0,
        min_capacity=7,
        drop="random",
        output_masking=0.2,
        ffn_dim=10,
    )
    assert (layer.capacity_factor, layer.eval_capacity_factor) == (1.5, 2.0)
    assert (layer.min_capacity, layer.drop, layer.output_masking) == (7, "random", 0.2)
    assert layer.experts.b1.shape == (4, 1, 10)
    assert layer_of(build, top_k=1).normalize_weights == "none"
    assert layer_of(build, top_k=2).normalize_weights == "after_dropping"
    assert layer_of(build, normalize_weights="before_dropping").normalize_weights == (
        "before_dropping"
    )


def test_experts_can_have_a_dropout_of_their_own(build):
    for own, expected in ((None, 0.1), (0.0, 0.0), (0.4, 0.4)):
        moe = {**MOE, "expert_dropout": own, "shared_experts": 1}
        model = build(moe=moe, activation_dropout=0.1)
        layer = next(part for part in model.modules() if isinstance(part, MoeFeedForward))
        assert (layer.experts.dropout, layer.branch.dense.dropout) == (expected, 0.1)


def test_experts_that_choose_take_the_capacity_factor(build):
    choosing = {"router": "expert_choice", "placement": "encoder"}
    for factor, expected in ((1.5, 1.5), (None, 1.0)):
        layer = layer_of(build, **choosing, capacity_factor=factor)
        assert layer.gate.capacity_factor == expected
        assert layer.capacity_factor is None
    by_language = layer_of(build, router="language", capacity_factor=1.5)
    assert by_language.capacity_factor is None, "the text says how many tokens a language has"


@pytest.mark.parametrize(
    ("settings", "kind", "width"),
    [
        ({}, None, None),
        ({"residual": True}, ResidualBranch, 24),
        ({"residual": True, "ffn_dim": 10}, ResidualBranch, 10),
        ({"shared_experts": 3, "ffn_dim": 10}, SharedBranch, 30),
        ({"conditional_budget": 0.4, "conditional_dropout": 0.1}, ConditionalBranch, 24),
    ],
)
def test_a_dense_branch_next_to_the_experts(build, settings, kind, width):
    branch = layer_of(build, **settings).branch
    if kind is None:
        assert branch is None
        return
    assert type(branch) is kind
    assert isinstance(branch.dense, FeedForward) and branch.dense.down.in_features == width
    if kind is ConditionalBranch:
        assert (branch.budget, branch.dropout) == (0.4, 0.1)


def test_a_pyramid_has_a_count_for_each_layer(build):
    layers = {"encoder": [1], "decoder": [2, 0]}
    model = build(decoder_layers=3, moe={"num_experts": [2, 4, 6], "layers": layers})
    assert {
        name.removesuffix(".feed_forward"): model.get_submodule(name).num_experts
        for name in sparse_layers(model)
    } == {"encoder.layers.1": 2, "decoder.layers.0": 4, "decoder.layers.2": 6}


def test_routers_of_a_model_are_drawn_each_for_itself(build):
    for moe in ROUTERS.values():
        model = build(moe=moe)
        gates = [model.get_submodule(name).gate for name in sparse_layers(model)]
        for name, parameter in gates[0].named_parameters():
            other = gates[1].get_parameter(name)
            assert parameter.numel() == 1 or not torch.equal(parameter, other), name


def test_fused_maps_are_drawn_as_if_they_stood_alone(build):
    model = build(d_model=64, ffn_dim=32, activation="swiglu")
    layer = model.decoder.layers[0]
    bounds = {
        "qkv": (layer.self_attention.qkv, (6 / (64 + 64) / 2) ** 0.5),
        "query": (layer.cross_attention.query, (6 / (64 + 64) / 2) ** 0.5),
        "key_value": (layer.cross_attention.key_value, (6 / (64 + 64) / 2) ** 0.5),
        "output": (layer.cross_attention.output, (6 / (64 + 64)) ** 0.5),
        "up": (layer.feed_forward.up, (6 / (64 + 32)) ** 0.5),
        "down": (layer.feed_forward.down, (6 / (64 + 32)) ** 0.5),
    }
    for name, (part, bound) in bounds.items():
        largest = part.weight.abs().max().item()
        assert 0.95 * bound < largest <= bound, name
        assert not part.bias.any(), name


def test_the_padding_row_starts_at_zero_and_others_do_not(build):
    weight = build(share_embeddings="none").source_embedding.weight
    assert weight.abs().amax(dim=1).eq(0).nonzero().flatten().tolist() == [1]


def test_unknown_parameters_are_not_left_undrawn():
    with pytest.raises(TypeError, match="Conv1d"):
        initialize(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1)), seed=1)


def _sized(config, vocab_size, expert_parallel, rank, seed):
    return torch.nn.Embedding(vocab_size, 2)


def _sized_by_side(config, vocab_size, expert_parallel, rank, seed, source_vocab_size=None):
    return torch.nn.Embedding(vocab_size, source_vocab_size or 1)


def test_a_model_from_outside_gets_the_sizes_that_it_can_take():
    named = {
        name: TypeAdapter(ModelConfig).validate_python({"name": f"{__name__}:{name}"})
        for name in ("_sized", "_sized_by_side")
    }
    with trusting([f"{__name__}:{name}" for name in named]):
        for config in named.values():
            for vocab in (9, VocabSizes(9, 9)):
                assert build_model(config, vocab, 1, 0, seed=1).num_embeddings == 9
        found = build_model(named["_sized_by_side"], VocabSizes(5, 9), 1, 0, seed=1)
        assert (found.num_embeddings, found.embedding_dim) == (9, 5)
        with pytest.raises(
            UserError, match="takes no source_vocab_size, but the vocabulary of the"
        ):
            build_model(named["_sized"], VocabSizes(5, 9), 1, 0, seed=1)


def test_tables_have_the_size_of_their_side(config):
    for shared, output in (("decoder", None), ("none", (9, 16))):
        model = build_model(config(share_embeddings=shared), VocabSizes(5, 9), 1, 0, seed=1)
        assert model.source_embedding.weight.shape == (5, 16)
        assert model.target_embedding.weight.shape == (9, 16)
        assert (None if model.output is None else tuple(model.output.weight.shape)) == output
