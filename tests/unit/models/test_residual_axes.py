"""Constants of residual connections, initial weights that follow from them, and dropped layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq.config.model.depth import deepnorm, subln
from tests.batches import encode, score

MOE = {"num_experts": 4, "top_k": 2, "every": 1, "capacity_factor": None}

# N, M -> alpha and beta of encoder and decoder; the second beta of the encoder is TorchScale's
PUBLISHED = {
    (6, 6): (1.417938, 0.496989, 0.656940, 2.059767, 0.343295),
    (12, 12): (1.760878, 0.400198, 0.528998, 2.449490, 0.288675),
    (18, 18): (1.998746, 0.352571, 0.466042, 2.710806, 0.260847),
    (100, 100): (3.415742, 0.206310, 0.272708, 4.161791, 0.169904),
    (6, 3): (1.357822, 0.518993, 0.686025, 1.732051, 0.408248),
}


@pytest.mark.parametrize(("depths", "constants"), PUBLISHED.items())
def test_constants_of_deepnorm(depths: tuple[int, int], constants: tuple[float, ...]) -> None:
    ours = deepnorm("encoder", *depths)
    _, theirs = deepnorm("encoder", *depths, as_torchscale=True)
    assert (*ours, theirs, *deepnorm("decoder", *depths)) == pytest.approx(constants, abs=1e-6)


@pytest.mark.parametrize(
    ("depth", "skip", "initial"), [(6, 1.861210, 0.379918), (100, 3.760603, 0.188030)]
)
def test_constants_of_deepnorm_with_one_stack(depth: int, skip: float, initial: float) -> None:
    for scale in (deepnorm("encoder", depth, 0), deepnorm("decoder", 0, depth)):
        assert scale == pytest.approx((skip, initial), abs=1e-6)


@pytest.mark.parametrize(
    ("depth", "single", "encoder", "decoder"),
    [
        (6, 1.576359, 1.547288, 1.700109),
        (12, 1.782710, 1.948385, 1.893018),
        (18, 1.893018, 2.182857, 1.997244),
        (100, 2.301807, 3.173875, 2.388259),
    ],
)
def test_constants_of_subln(depth: int, single: float, encoder: float, decoder: float) -> None:
    found = [
        subln("decoder", 0, depth).initial,
        subln("encoder", depth, depth).initial,
        subln("decoder", depth, depth).initial,
    ]
    assert found == pytest.approx([single, encoder, decoder], abs=1e-6)


@pytest.mark.parametrize("moe", [None, {**MOE, "shared_experts": 1}], ids=["dense", "experts"])
@pytest.mark.parametrize("position", ["deepnorm", "subln"])
def test_initial_weights_are_scaled_where_values_pass(build, config, position, moe):
    """Queries and keys are not, nor is the cross-attention of SubLN."""
    plain = build(norm_position="post", decoder_layers=3, moe=moe).state_dict()
    scaled = build(norm_position=position, decoder_layers=3, moe=moe).state_dict()
    cfg = config(norm_position=position, decoder_layers=3)
    for stack in ("encoder", "decoder"):
        factor = cfg.depth_scale(stack, 2, 3).initial
        prefix, cross = f"{stack}.layers.1.", 1.0 if position == "subln" else factor
        qkv = plain[f"{prefix}self_attention.qkv.weight"].chunk(3)
        expected = {
            "self_attention.qkv.weight": torch.cat([*qkv[:2], qkv[2] * factor]),
            "self_attention.output.weight": factor,
        }
        if moe is None:
            expected |= {"feed_forward.up.weight": factor, "feed_forward.down.weight": factor}
        else:
            parts = ("experts.w1", "experts.w2", "branch.dense.up.weight")
            expected |= {f"feed_forward.{part}": factor for part in parts}
            expected["feed_forward.gate.weight"] = 1.0
        if stack == "decoder":
            expected["cross_attention.output.weight"] = cross
            expected["cross_attention.query.weight"] = 1.0
        for name, value in expected.items():
            before = plain[prefix + name]
            value = value if isinstance(value, Tensor) else before * value
            torch.testing.assert_close(scaled[prefix + name], value, msg=name)


def test_deepnorm_weighs_what_went_in(build):
    residual = build(norm_position="deepnorm", dropout=0.0).decoder.layers[0].feed_forward_residual
    x, y = torch.randn(2, 2, 3, 16)
    alpha = (3 * 2) ** 0.25
    torch.testing.assert_close(residual.leave(x, y), residual.norm(alpha * x + y))
    assert residual.enter(x) is x


def test_drop_path_rises_with_depth_and_drops_sentences(build):
    model = build(encoder_layers=5, drop_path=0.4).train()
    rates = [layer.feed_forward_residual.drop_path for layer in model.encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    residual = model.encoder.layers[4].feed_forward_residual
    residual.norm = torch.nn.Identity()
    torch.manual_seed(1)
    y = torch.ones(4000, 2, 3)
    out = residual.leave(torch.zeros_like(y), y)
    assert set(out.flatten(1).std(1).tolist()) == {0.0}, "a sentence is dropped as a whole"
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.4, abs=0.04)
    assert torch.equal(residual.eval().leave(torch.zeros_like(y), y), y)


def test_a_dropped_layer_returns_its_input_and_gets_zero_gradients(build, pairs):
    model = build(encoder_layers=1, layer_drop=0.999, dropout=0.0).train()
    torch.manual_seed(1)
    embedded = model.encoder._start(model.target_embedding(pairs.src), 0, 7)
    encoded = encode(model, pairs.src).hidden
    torch.testing.assert_close(encoded, embedded)
    score(model, *pairs).logits.sum().backward()
    assert not model.encoder.layers[0].feed_forward.up.weight.grad.any()
    torch.testing.assert_close(encode(model.eval(), pairs.src).hidden.std() > 0, torch.tensor(True))
