"""Properties of single building blocks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ds_seq.modules import linear
from ds_seq.modules.attention import SelfAttention, attend, attend_with_map
from ds_seq.modules.body import Context
from ds_seq.modules.embedding import TokenEmbedding
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.kv_cache import KeyValue, is_identity
from ds_seq.modules.positions import LearnedPositions, SinusoidalPositions
from ds_seq.modules.residual import dropout


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (0, 12), (1, 12)])
@pytest.mark.parametrize("outputs", [5, 40])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_torchs_linear(shape, outputs, with_bias):
    x = torch.randn(shape, generator=generator(), requires_grad=True)
    weight = torch.randn(outputs, 12, generator=generator(1), requires_grad=True)
    bias = torch.randn(outputs, generator=generator(2), requires_grad=True) if with_bias else None
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    weighting = torch.randn(*shape[:-1], outputs, generator=generator(3))
    results = []
    for function in (linear.linear, F.linear):
        y = function(x, weight, bias)
        results.append((y, *torch.autograd.grad((y * weighting).sum(), leaves)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear.linear(x, weight, bias), results[1][0])


def test_linear_of_a_frozen_weight_has_the_gradient_of_its_input():
    x = torch.randn(3, 4, generator=generator(), requires_grad=True)
    weight = torch.randn(5, 4, generator=generator(1))
    linear.linear(x, weight, torch.zeros(5)).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_linear_leaves_other_precisions_to_torch(dtype):
    x, weight = (torch.ones(2, 4, dtype=dtype) for _ in range(2))
    assert torch.equal(linear.linear(x, weight), F.linear(x, weight))


def test_linear_in_fp16_rounds_only_its_results():
    """Also where it is computed in fp32, which is faster on processors without fp16."""
    leaves = [torch.randn(n, 12, generator=generator(n)).half().requires_grad_() for n in (7, 5)]
    bias = torch.randn(5, generator=generator()).half().requires_grad_()
    exact = [leaf.detach().double().requires_grad_() for leaf in (*leaves, bias)]
    y, expected = linear.linear(*leaves, bias, "relu"), F.linear(*exact).relu()
    found = torch.autograd.grad(y.sum(), [*leaves, bias])
    wanted = torch.autograd.grad(expected.sum(), exact)
    for one, other in zip([y, *found], [expected, *wanted], strict=True):
        assert one.dtype == torch.float16
        torch.testing.assert_close(one, other.half(), atol=0.0, rtol=2**-10)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_dropout_keeps_the_mean_and_the_stated_share(p):
    torch.manual_seed(1)
    x = torch.full((500, 401), 3.0, requires_grad=True)
    y = dropout(x, p, training=True)
    count = x.numel()
    deviation = math.sqrt(p * (1 - p) / count)
    share = y.eq(0).float().mean().item()
    assert abs(share - p) <= 5 * deviation
    assert abs(y.mean().item() / 3 - 1) <= 5 * deviation / (1 - p) + 1e-5
    assert y.unique().numel() == (1 if p == 0 else 2)
    y.sum().backward()
    torch.testing.assert_close(x.grad * 3, y.detach())


def test_dropout_draws_for_each_element_alone():
    torch.manual_seed(2)
    kept = dropout(torch.ones(2000, 64), 0.5, training=True).ne(0).float() - 0.5
    together = (kept.T @ kept / len(kept)).abs() * 4
    assert together.fill_diagonal_(0).max() < 5 / math.sqrt(len(kept))


def test_dropout_is_seeded_by_torch_and_absent_in_evaluation():
    x = torch.ones(101)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.4, training=True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert dropout(x, 0.4, training=False) is x
    assert not dropout(x, 1.0, training=True).any()


@pytest.mark.parametrize("mask_kind", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("queries", [3, 30])
def test_attention_is_the_formula(mask_kind, queries):
    query, key, value = torch.randn(3, 2, 2, queries, 8, generator=generator())
    keep = torch.rand(2, 1, 1, queries, generator=generator(1)) > 0.3
    keep[..., 0] = True
    scores = query @ key.transpose(-1, -2) / math.sqrt(8)
    mask = None
    if mask_kind == "causal":
        scores = scores.masked_fill(torch.ones(queries, queries).triu(1).bool(), -math.inf)
    elif mask_kind != "none":
        scores = scores.masked_fill(~keep, -math.inf)
        mask = (
            keep if mask_kind == "bool" else torch.zeros(keep.shape).masked_fill(~keep, -math.inf)
        )
    expected = (scores.softmax(-1) @ value).transpose(1, 2).reshape(2, queries, 16)
    causal = mask_kind == "causal"
    actual = attend(query, KeyValue(key, value), mask, causal, dropout=0.0)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    actual, weights = attend_with_map(query, KeyValue(key, value), mask, causal, dropout=0.0)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights, scores.softmax(-1))


def test_a_map_is_what_attention_was_before_dropout():
    query, key = torch.randn(2, 50, 2, 4, 8, generator=generator())
    memory = KeyValue(key, torch.eye(4).expand(50, 2, 4, 4))  # values that show the weights
    torch.manual_seed(3)
    used, weights = attend_with_map(query, memory, dropout=0.25)
    used = used.unflatten(-1, (2, 4)).transpose(1, 2)  # (B, T, H S) -> (B, H, T, S)
    dropped = used == 0
    assert 0.2 < dropped.float().mean() < 0.3
    torch.testing.assert_close(used[~dropped], weights[~dropped] / 0.75, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(50, 2, 4))


def test_both_attention_kernels_agree_around_the_switch(monkeypatch):
    query, key, value = torch.randn(3, 2, 2, 5, 8, generator=generator())
    short = attend(query, KeyValue(key, value), dropout=0.0)
    monkeypatch.setattr("ds_seq.modules.attention._FUSED_MIN_QUERIES", 0)
    torch.testing.assert_close(
        attend(query, KeyValue(key, value), dropout=0.0), short, atol=1e-6, rtol=1e-5
    )


def test_self_attention_without_positions_ignores_order():
    layer = SelfAttention(8, 2, dropout=0.0, causal=False)
    x = torch.randn(2, 5, 8, generator=generator())
    order = torch.tensor([3, 1, 4, 0, 2])
    before, after = layer(x)[0], layer(x[:, order])[0]
    torch.testing.assert_close(after, before[:, order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "positions", [SinusoidalPositions(8, 0, "inclusive"), LearnedPositions(700, 8)]
)
def test_a_position_does_not_depend_on_how_it_is_requested(positions):
    if isinstance(positions, LearnedPositions):
        torch.nn.init.normal_(positions.weight, generator=generator())
    x = torch.ones(1, 600, 8)
    whole = positions(x, 0, 600)
    for start in (0, 3, 511, 512, 599):
        torch.testing.assert_close(positions(x[:, :1], start, 1), whole[:, start : start + 1])
    assert (whole[0, 1:] - whole[0, :-1]).abs().amax(dim=1).min() > 1e-3


def test_position_tables_are_not_rounded_by_half():
    positions = SinusoidalPositions(8, 0, "inclusive")
    x = torch.zeros(1, 300, 8)
    exact = positions(x, 0, 300)
    positions.half()
    assert positions(x.half(), 0, 300).dtype == torch.float16
    assert torch.equal(positions(x, 0, 300), exact)
    assert not positions.state_dict()


@pytest.mark.parametrize("wavelengths, steps", [("inclusive", 3), ("exclusive", 4)])
def test_sinusoidal_positions_are_the_formula(wavelengths, steps):
    positions = SinusoidalPositions(8, 2, wavelengths)
    angles = [[p * 10000 ** (-i / steps) for i in range(4)] for p in range(2, 7)]
    expected = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
    found = positions(torch.zeros(1, 5, 8), 0, 5)[0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_learned_positions_have_an_end():
    positions = LearnedPositions(4, 8)
    with pytest.raises(ValueError, match="4 learned positions"):
        positions(torch.zeros(1, 2, 8), 3, 2)


def test_swiglu_is_the_formula():
    layer = FeedForward(4, 6, "swiglu", dropout=0.0)
    x = torch.randn(2, 3, 4, generator=generator())
    gate, value = (
        x @ w.T + b for w, b in zip(layer.up.weight.chunk(2), layer.up.bias.chunk(2), strict=True)
    )
    expected = (F.silu(gate) * value) @ layer.down.weight.T + layer.down.bias
    torch.testing.assert_close(layer(x)[0], expected, atol=1e-6, rtol=1e-5)
    assert layer.down.in_features == 6


def test_embedding_scales_what_it_looks_up_and_not_what_it_scores():
    embedding = TokenEmbedding(5, 16, pad_id=1)
    torch.nn.init.normal_(embedding.weight, generator=generator())
    torch.testing.assert_close(embedding(torch.tensor([[3]]))[0, 0], 4 * embedding.weight[3])
    hidden = torch.randn(2, 16, generator=generator(1))
    torch.testing.assert_close(embedding(hidden, project=True), hidden @ embedding.weight.T)
    embedding(torch.tensor([[1, 3]])).sum().backward()
    assert embedding.weight.grad.abs().amax(dim=1).nonzero().flatten().tolist() == [3]


def test_identity_rows_are_recognized():
    assert is_identity(torch.arange(4), 4)
    assert not is_identity(torch.arange(4), 5)
    assert not is_identity(torch.tensor([0, 2, 1, 3]), 4)


@pytest.mark.parametrize("length", [5, 20])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_position_bias_is_added_to_the_scores(length, causal, padded):
    """Outputs agree for both kernels, with and without a mask, and with and without the map."""
    layer = SelfAttention(8, 2, dropout=0.0, causal=causal).eval()
    x = torch.randn(3, length, 8, generator=generator())
    bias = torch.randn(2, length, length, generator=generator())
    mask = None
    if padded:
        mask = torch.zeros(3, 1, 1, length)
        mask[1, ..., -2:] = -math.inf
    context = Context(attention_mask=mask, position_bias=bias)
    query, key, value = (
        part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1)
    )
    scores = query @ key.transpose(-1, -2) / 2 + bias
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    expected = layer.output((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, context).y, expected, atol=1e-5, rtol=1e-5)
    output = layer(x, context._replace(with_maps=True))
    torch.testing.assert_close(output.y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.map, weights, atol=1e-6, rtol=1e-5)
