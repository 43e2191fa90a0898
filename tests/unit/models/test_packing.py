"""Packed weights say the same, and only where no gradient is wanted."""

from __future__ import annotations

import pytest
import torch

from ds_seq.models.packing import pack_weights
from ds_seq.modules.linear import Linear, pack
from ds_seq.moe.experts import Experts
from tests.unit.models.sections import ROUTERS

SHAPES = [
    {},
    {"share_embeddings": "none"},
    {"moe": ROUTERS["softmax"]},
    {"moe": ROUTERS["softmax"], "activation": "swiglu"},
]
needs_packing = pytest.mark.skipif(
    pack(torch.ones(4, 4)) is None, reason="this processor has no oneDNN kernels to pack for"
)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_model_says_the_same(build, pairs, shape):
    model = build(**shape).eval()
    with torch.no_grad():
        expected = model(pairs.src, pairs.tgt).logits
        pack_weights(model)
        torch.testing.assert_close(
            model(pairs.src, pairs.tgt).logits, expected, atol=1e-5, rtol=1e-5
        )


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
def test_every_map_is_packed_but_gradients_see_the_weights(build, pairs, shape):
    model = build(**shape).eval()
    with torch.no_grad():
        before = model(pairs.src, pairs.tgt).logits
        pack_weights(model)
        for module in model.modules():  # behind the back of the copies
            if isinstance(module, Linear):
                module.weight.mul_(3.0)
            elif isinstance(module, Experts):
                module.w1.mul_(3.0)
                module.w2.mul_(3.0)
        packed = model(pairs.src, pairs.tgt).logits
    changed = model(pairs.src, pairs.tgt).logits
    torch.testing.assert_close(packed, before, atol=1e-5, rtol=1e-5)
    assert (changed - before).abs().max() > 0.1
