"""Packed weights give the same results, and are used only without gradients."""

from __future__ import annotations

import pytest
import torch

from ds_seq.models.packing import pack_weights
from ds_seq.modules.linear import Linear
from ds_seq.modules.packed import _LARGE, _SMALL, pack
from ds_seq.moe.experts import Experts
from tests.batches import score
from tests.unit.models.sections import ROUTERS

SHAPES = [
    {},
    {"share_embeddings": "none"},
    {"moe": ROUTERS["softmax"]},
    {"moe": ROUTERS["softmax"], "activation": "swiglu"},
]
needs_packing = pytest.mark.skipif(
    pack(torch.ones(4, 4), None) is None, reason="this processor has no oneDNN kernels to pack for"
)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_model_says_the_same(build, pairs, shape):
    model = build(**shape).eval()
    with torch.no_grad():
        expected = score(model, pairs.src, pairs.tgt).logits
        pack_weights(model)
        torch.testing.assert_close(
            score(model, pairs.src, pairs.tgt).logits, expected, atol=1e-5, rtol=1e-5
        )


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
def test_every_map_is_packed_but_gradients_see_the_weights(build, pairs, shape):
    model = build(**shape).eval()
    with torch.no_grad():
        before = score(model, pairs.src, pairs.tgt).logits
        pack_weights(model)
        for module in model.modules():  # behind the back of the copies
            if isinstance(module, Linear):
                module.weight.mul_(3.0)
            elif isinstance(module, Experts):
                module.w1.mul_(3.0)
                module.w2.mul_(3.0)
        packed = score(model, pairs.src, pairs.tgt).logits
    changed = score(model, pairs.src, pairs.tgt).logits
    torch.testing.assert_close(packed, before, atol=1e-5, rtol=1e-5)
    assert (changed - before).abs().max() > 0.1


@needs_packing
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("rows", [1, _SMALL // (24 * 40) + 1])  # without oneDNN, and with it
def test_a_packed_map_is_a_copy_for_few_rows_and_many(rows, activation):
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(24, 40, generator=generator), torch.randn(24, generator=generator)
    x = torch.randn(rows, 40, generator=generator)
    expected = torch.nn.functional.linear(x, weight, bias)
    if activation == "relu":
        expected = expected.relu()
    packed = pack(weight, bias)
    assert packed is not None
    weight.zero_()
    torch.testing.assert_close(packed(x, activation), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_give_nearly_the_same(build, pairs, shape):
    model = build(**shape).eval()
    with torch.no_grad():
        expected = score(model, pairs.src, pairs.tgt).logits
        pack_weights(model, int8=True)
        rounded = score(model, pairs.src, pairs.tgt).logits
    error = (rounded - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("rows", [5, _LARGE // 24 // 7 + 1])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_eight_bits_are_right_to_a_step(activation, rows):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 40, generator=generator)
    weight[3] = 0.0
    bias, x = torch.randn(24, generator=generator), torch.randn(rows, 7, 40, generator=generator)
    rounded = pack(weight, bias, int8=True)
    assert rounded is not None
    exact = torch.nn.functional.linear(x, weight, bias)
    if activation == "relu":
        exact = exact.relu()
    # half a step of each factor, summed over the inputs as independent errors
    step = (
        x.abs().max() / 127 * weight.norm(dim=1)
        + weight.abs().amax(1) / 127 * x.norm(dim=-1)[..., None]
    )
    assert ((rounded(x, activation) - exact).abs() <= 3 * step).all()
    torch.testing.assert_close(rounded(x, activation)[..., 3], exact[..., 3])


def test_eight_bits_round_alike_for_few_rows_and_for_many():
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(5, 40, generator=generator)
    rounded = pack(weight, None, int8=True)
    assert rounded is not None
    many = rounded(x.repeat(_LARGE // 24 // 5 + 1, 1), "none")
    torch.testing.assert_close(many[:5], rounded(x, "none"), atol=1e-5, rtol=1e-5)


def test_packing_leaves_the_engine_of_quantized_tensors_as_it_was():
    before = torch.backends.quantized.engine
    pack(torch.ones(4, 4), None, int8=True)
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_model_in_bfloat16_gives_nearly_the_same(build, pairs, shape):
    model = build(**shape).eval()
    with torch.no_grad():
        expected = score(model, pairs.src, pairs.tgt).logits
        model = model.bfloat16()
        rounded = score(model, pairs.src, pairs.tgt).logits
        pack_weights(model)
        packed = score(model, pairs.src, pairs.tgt).logits
    assert packed.dtype == torch.bfloat16
    error, before = ((x.float() - expected).norm() / expected.norm() for x in (packed, rounded))
    assert 0 < error < 2 * before


def test_eight_bits_need_single_precision_on_a_cpu():
    with pytest.raises(ValueError, match="8 bits"):
        pack(torch.ones(4, 4, dtype=torch.bfloat16), None, int8=True)
    assert pack(torch.ones(4, 4, dtype=torch.float16), None) is None
