"""What the builder makes of a config, and how parameters start."""

from __future__ import annotations

import pytest
import torch

from ds_seq.models import build_seq2seq
from ds_seq.models.init import initialize
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.layer import MoeFeedForward

VOCAB = 23
MOE = {"num_experts": 4, "top_k": 2, "every": 1}


def sparse_layers(model):
    return [name for name, part in model.named_modules() if isinstance(part, MoeFeedForward)]


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


def test_gate_losses_and_statistics_come_from_every_sparse_layer(build, pairs):
    dense, sparse = build(), build(moe=MOE)
    assert dense(*pairs).gate_losses == {}
    assert dense(*pairs).moe_stats == []
    output = sparse(*pairs)
    assert [stats.load.sum().item() for stats in output.moe_stats] == [
        2 * (side != 1).sum().item() for side in pairs for _ in range(2)
    ]
    encoder_part = sparse.encode(pairs.src).gate_losses
    assert output.gate_losses.keys() == encoder_part.keys() != set()
    assert all(output.gate_losses[name] > encoder_part[name] for name in encoder_part)


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


def test_residual_moe_has_a_dense_branch(build):
    model = build(moe={**MOE, "residual": True})
    assert isinstance(model.encoder.layers[0].feed_forward.residual, FeedForward)
    assert build(moe=MOE).encoder.layers[0].feed_forward.residual is None


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
