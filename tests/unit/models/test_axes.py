"""Every value of every axis of a model: counted, decoded as trained, drawn as published."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.modules.attention import SelfAttention, attend, attend_with_map
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.kv_cache import KeyValue
from ds_seq.modules.rms_norm import RmsNorm
from ds_seq.moe.experts import Experts
from tests.batches import encode, score
from tests.unit.models.test_sublayers import walk

VOCAB = 23
MOE = {"num_experts": 4, "top_k": 2, "every": 1, "capacity_factor": None}
YARN = {"name": "rotary", "scaling": "yarn", "factor": 4.0, "original_length": 16}
RETENTION = {"name": "retention", "shortest_memory": 4.0}
DILATED = {"name": "dilated", "segment_lengths": [2, 5, 40], "dilations": [1, 2, 3]}
LIGHTWEIGHT = {"name": "lightweight_convolution", "kernel_sizes": [3]}
DYNAMIC = {"name": "dynamic_convolution", "kernel_sizes": [2]}
VALUES: dict[str, dict[str, Any]] = {
    "rms": {"norm": "rms"},
    "deepnorm": {"norm_position": "deepnorm"},
    "subln": {"norm_position": "subln"},
    "subln rms": {"norm_position": "subln", "norm": "rms"},
    "relu_squared": {"activation": "relu_squared"},
    "geglu": {"activation": "geglu", "ffn_two_thirds": True},
    "none": {"positions": "none"},
    "rotary": {"positions": {"name": "rotary", "interleaved": True, "theta": 100.0}},
    "yarn": {"positions": YARN},
    "xpos": {"positions": "xpos"},
    "alibi": {"positions": "alibi"},
    "buckets": {"positions": "buckets"},
    "grouped queries": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1, "positions": "buckets"},
    "window": {"attention_window": 3},
    "window alibi": {"attention_window": 5, "positions": "alibi", "num_kv_heads": 2},
    "query norms": {"query_key_norm": True, "norm": "rms", "positions": "rotary"},
    "factorized": {"embedding_dim": 8, "embedding_norm": True},
    "three factors": {"embedding_dim": 8, "share_embeddings": "none", "embedding_scale": False},
    "repeats": {"encoder_repeats": 2, "decoder_repeats": 3},
    "adapters": {"adapters": {"ids": ["a"], "active": "a", "gate": True}},
    "gated adapters": {
        "adapters": {"ids": ["a"], "active": "a", "activation": "swiglu", "norm": "last"}
    },
    "ternary": {"linear": "bitnet"},
    "binary": {
        "linear": {"name": "bitnet", "weights": "binary", "norm": "layer"},
        "norm_position": "subln",
        "activation": "swiglu",
    },
    "multiway": {
        "multiway": {"markers": {"a": 0, "b": 1}},
        "norm_position": "subln",
        "query_key_norm": True,
        "num_kv_heads": 2,
    },
    "multiway decoder": {
        "multiway": {"markers": {"a": 0, "b": 1}, "placement": "decoder"},
        "norm": "rms",
        "embedding_norm": True,
        "activation": "swiglu",
    },
    "lora": {"lora": {"rank": 2, "modules": ["query", "key", "value", "output", "up", "down"]}},
    "retention": {"decoder_mixer": RETENTION},
    "retention only": {
        "encoder_mixer": {**RETENTION, "chunk_size": 3},
        "decoder_mixer": {**RETENTION, "value_width": 12, "num_heads": 2},
        "positions": "none",
        "norm_position": "subln",
    },
    "retention and more": {
        "encoder_mixer": RETENTION,
        "positions": "buckets",
        "attention_window": 3,
        "linear": "bitnet",
        "multiway": {"markers": {"a": 0, "b": 1}},
    },
    "changed retention": {
        "decoder_mixer": {**RETENTION, "gate_activation": "gelu", "longest_memory": 8.0},
        "positions": "learned",
        "lora": {"rank": 2, "modules": ["query", "value", "output"]},
    },
    "lightweight": {"encoder_mixer": LIGHTWEIGHT, "positions": "alibi"},
    "dynamic": {"decoder_mixer": {**DYNAMIC, "num_heads": 2, "width": 8}, "norm": "rms"},
    "convolutions": {
        "encoder_mixer": {**DYNAMIC, "kernel_sizes": [4]},
        "decoder_mixer": {**LIGHTWEIGHT, "glu": False, "weight_softmax": False},
        "positions": "learned",
        "norm_position": "subln",
        "lora": {"rank": 2, "modules": ["query", "value", "output"]},
        "attention_dropout": 0.1,
    },
    "convolutions of sets": {
        "encoder_mixer": {**LIGHTWEIGHT, "input_dropout": 0.1, "weight_dropout": 0.0},
        "decoder_mixer": DYNAMIC,
        "multiway": {"markers": {"a": 0, "b": 1}},
        "linear": "bitnet",
        "norm_position": "subln",
    },
    "lightweight sets": {
        "decoder_mixer": {**LIGHTWEIGHT, "kernel_sizes": [40]},
        "multiway": {"markers": {"a": 0, "b": 1}},
        "decoder_repeats": 2,
    },
    "dilated": {"encoder_mixer": DILATED},
    "dilated only": {
        "encoder_mixer": {"name": "dilated", "segment_lengths": [3], "dilations": [1]},
        "decoder_mixer": DILATED,
        "positions": "xpos",
        "num_kv_heads": 2,
        "norm_position": "subln",
    },
    "dilated and more": {
        "encoder_mixer": "retention",
        "decoder_mixer": DILATED,
        "query_key_norm": True,
        "multiway": {"markers": {"a": 0, "b": 1}},
    },
    "changed dilated": {
        "decoder_mixer": DILATED,
        "pruned_heads": {"decoder": [[0], [1, 2]]},
        "attention_window": 3,
        "positions": "learned",
    },
    "dropped layers": {"layer_drop": 0.5, "drop_path": 0.3},
}


def _away_from_the_start(model: Seq2SeqTransformer) -> None:
    """Change what starts at 0 or 1, which would hide a part that is not applied."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.unique().numel() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


# what changes attention alone meets experts in slow tests
ATTENTION_ALONE = {"rotary", "yarn", "xpos", "alibi", "none", "window", "window alibi"}
ATTENTION_ALONE |= {"grouped queries", "one key head", "query norms", "retention"}
ATTENTION_ALONE |= {"factorized", "three factors", "changed retention"}
ATTENTION_ALONE |= {"dilated", "dilated only", "changed dilated"}
ATTENTION_ALONE |= {"lightweight", "dynamic", "convolutions of sets"}


@pytest.mark.parametrize(
    ("name", "moe"),
    [
        pytest.param(name, moe, id=f"{name}-{kind}", marks=[pytest.mark.slow] * slow)
        for name in VALUES
        for kind, moe, slow in (
            ("dense", None, 0),
            ("experts", MOE, int(name in ATTENTION_ALONE)),
        )
    ],
)
def test_each_value_is_counted_trained_and_decoded(build, config, pairs, name, moe):
    settings = {"num_heads": 4, **VALUES[name], "moe": moe}
    model = build(**settings)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert config(**settings).num_params(VOCAB).total == counted
    _away_from_the_start(model)
    with torch.no_grad():
        model.target_embedding.weight[1] = 0.0
    model.eval()
    walk(model, pairs.src, 3, 40)
    model.train()
    output = score(model, *pairs)
    (output.logits.square().mean() + sum(output.router_losses.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", VALUES)
def test_padding_and_company_change_nothing(build, pairs, name):
    model = build(num_heads=4, **VALUES[name]).eval()
    _away_from_the_start(model)
    with torch.no_grad():
        together = encode(model, pairs.src).hidden[2, :2]
        alone = encode(model, pairs.src[2:3, :2]).hidden[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in VALUES if name != "dropped layers"])
def test_each_value_makes_another_model(build, pairs, name):
    """What is read from the config and then not applied would go unnoticed everywhere else."""
    plain, other = build(num_heads=4), build(num_heads=4, **VALUES[name])
    _away_from_the_start(other)
    same = {key: value for key, value in plain.state_dict().items() if key in other.state_dict()}
    if all(value.shape == other.state_dict()[key].shape for key, value in same.items()):
        other.load_state_dict(same, strict=False)
    difference = score(plain.eval(), *pairs).logits - score(other.eval(), *pairs).logits
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    ["subln rms", "yarn", "xpos", "alibi", "buckets", "window alibi", "retention only"]
    + ["convolutions", "dilated only"],
)
def test_half_precision_stays_near_single(build, pairs, name, dtype):
    model = build(num_heads=4, **VALUES[name]).eval()
    with torch.no_grad():
        exact = score(model, *pairs).logits
        half = score(model.to(dtype), *pairs).logits
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("queries", [3, 20])
@pytest.mark.parametrize("shape", [None, (5, 1, 1, 9), (1, 6, 1, 9), (6, 1, 9), (5, 6, 1, 9)])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 3])
def test_shared_keys_are_repeated_keys(queries, shape, num_kv_heads):
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(5, 6, queries, 4, generator=generator)
    memory = KeyValue(*torch.randn(2, 5, num_kv_heads, 9, 4, generator=generator))
    repeated = KeyValue(*(x.repeat_interleave(6 // num_kv_heads, 1) for x in memory))
    masks = [None]
    if shape is not None:
        wide = (*shape[:-2], queries, 9)
        masks = [torch.randn(size, generator=generator) for size in (shape, wide)]
    for mask in masks:
        expected, expected_map = attend_with_map(query, repeated, mask, dropout=0.0)
        actual, actual_map = attend_with_map(query, memory, mask, dropout=0.0)
        torch.testing.assert_close(actual_map, expected_map)
        torch.testing.assert_close(actual, expected)
        fast = attend(query, memory, mask, dropout=0.0)
        torch.testing.assert_close(fast, expected, atol=1e-5, rtol=1e-5)


def test_one_key_head_per_query_head_is_plain_attention():
    plain, grouped = SelfAttention(8, 2, 0.0, True), SelfAttention(8, 2, 0.0, True, None, 2)
    grouped.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 8)
    assert torch.equal(plain(x).y, grouped(x).y)


def test_a_window_as_wide_as_the_text_is_no_window(build, pairs):
    plain, windowed = build().eval(), build(attention_window=7).eval()
    windowed.load_state_dict(plain.state_dict())
    torch.testing.assert_close(score(windowed, *pairs).logits, score(plain, *pairs).logits)


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (0, 6)])
def test_rms_norm_and_its_gradients_are_the_formula(shape):
    norm = RmsNorm(6, 1e-6)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, requires_grad=True)
    grad = torch.randn(shape)
    exact = x.double()
    y = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    expected = torch.autograd.grad(y, [x, norm.weight], grad.double())
    torch.testing.assert_close(norm(x), y.float())
    found = torch.autograd.grad(norm(x), [x, norm.weight], grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rms_norm_of_large_and_of_empty_rows(dtype):
    """Squares of 300 overflow float16, and an epsilon of 1e-6 is zero in it."""
    norm = RmsNorm(8, 1e-6).to(dtype)
    rows = torch.stack([torch.zeros(8), torch.full((8,), 300.0)]).to(dtype)
    torch.testing.assert_close(norm(rows), torch.stack([torch.zeros(8), torch.ones(8)]).to(dtype))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_experts_with_inner_norms_are_their_feed_forwards(activation):
    """Each expert, an idle one included, against the dense feed-forward with its parameters."""
    make = lambda: torch.nn.LayerNorm(6)  # noqa: E731
    experts = Experts(4, 6, 3, 0, activation, 0.0, 1, make())
    for parameter in experts.inner_norm.parameters():
        torch.nn.init.normal_(parameter)
    counts = torch.tensor([3, 0, 2])
    x = torch.randn(5, 4)
    parts = []
    for expert, rows in enumerate(x.split(counts.tolist())):
        dense = FeedForward(4, 6, activation, 0.0, make())
        up, down = experts.maps
        with torch.no_grad():
            dense.up.weight.copy_(up[expert])
            dense.up.bias.copy_(experts.b1[expert, 0])
            dense.down.weight.copy_(down[expert])
            dense.down.bias.copy_(experts.b2[expert, 0])
            dense.inner_norm.weight.copy_(experts.inner_norm.weight[expert, 0])
            dense.inner_norm.bias.copy_(experts.inner_norm.bias[expert, 0])
        parts.append(dense(rows).y)
    y = experts(x, counts)
    torch.testing.assert_close(y, torch.cat(parts))
    y.sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any(), "an idle expert"


def test_factorized_embeddings_score_through_the_factor(build):
    table = build(embedding_dim=8).target_embedding
    product = table.weight @ table.factor.weight.t()  # (V, D)
    tokens = torch.tensor([[3, 5]])
    torch.testing.assert_close(table(tokens), 4.0 * product[tokens])
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(table(hidden, project=True), hidden @ product.t())
    assert product.std().item() == pytest.approx(16**-0.5, rel=0.25)


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "experts"])
def test_a_repeated_layer_learns_what_its_copies_learn_together(build, pairs, moe):
    """Its gradient is the sum of those of layers of their own with the same values."""
    shared = build(
        encoder_layers=1, encoder_repeats=3, decoder_layers=1, decoder_repeats=2, moe=moe
    )
    copies = build(encoder_layers=3, decoder_layers=2, moe=moe)
    state = shared.state_dict()
    copies.load_state_dict({k: state[_first(k)] for k in copies.state_dict()})
    outputs = [score(model, *pairs) for model in (shared, copies)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    assert len(outputs[0].moe_stats) == len(outputs[1].moe_stats) == (5 if moe else 0)
    for output in outputs:
        (output.logits.square().sum() + sum(output.router_losses.values())).backward()
    sums = {name: torch.zeros_like(value) for name, value in shared.named_parameters()}
    for name, parameter in copies.named_parameters():
        sums[_first(name)] += parameter.grad
    for name, parameter in shared.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name], atol=1e-4, rtol=1e-4)


def _first(name: str) -> str:
    """Return the name of the same parameter in layer 0."""
    return re.sub(r"layers\.\d+", "layers.0", name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads: 3 does not divide num_heads 2"),
        ({"ffn_two_thirds": True}, "ffn_two_thirds: needs an activation with two projections"),
        ({"embedding_dim": 16}, "embedding_dim: 16 saves nothing"),
        ({"deepnorm_init": "torchscale"}, "deepnorm_init: applies to norm_position deepnorm"),
        ({"positions": {"name": "rotary", "factor": 2.0}}, "factor: needs a scaling"),
        ({"positions": {"name": "rotary", "scaling": "yarn", "factor": 2.0}}, "original_length"),
        ({"positions": {"name": "buckets", "max_distance": 9}}, "max_distance: must be above half"),
        ({"positions": "xpos", "num_heads": 16}, "xpos rotates pairs of features"),
    ],
)
def test_what_does_not_go_together_is_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_the_width_of_two_thirds(config):
    narrow = config(activation="swiglu", ffn_two_thirds=True)
    assert [narrow.inner_width(ffn_dim) for ffn_dim in (24, 2048, 8)] == [16, 1368, 8]
    gated = config(activation="swiglu", ffn_two_thirds=True, ffn_dim=3072, d_model=768)
    plain = config(activation="relu", ffn_dim=3072, d_model=768)
    ratio = gated.num_params(VOCAB).total / plain.num_params(VOCAB).total
    assert math.isclose(ratio, 1.0, abs_tol=0.001)
