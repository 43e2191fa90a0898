"""Positions inside attention: rotations and biases, against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq.modules.position_bias import AlibiBias, BucketBias, Window, alibi_slopes
from ds_seq.modules.rotary import RotaryPositions, RotaryScale, XPositions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotary(width: int = 8, interleaved: bool = False, **scale: Any) -> RotaryPositions:
    given = RotaryScale(**{"original_length": None, **scale}) if scale else None
    return RotaryPositions(width, 10000.0, interleaved, given)


def xpos(causal: bool) -> XPositions:
    return XPositions(8, causal, 300, 10000.0, 512.0, interleaved=True)


ROTATIONS = {
    "rotary": rotary(),
    "interleaved": rotary(interleaved=True),
    "theta": RotaryPositions(8, 500.0, interleaved=False),
    "linear": rotary(scaling="linear", factor=4.0),
    "ntk": rotary(scaling="ntk", factor=4.0),
    "yarn": rotary(scaling="yarn", factor=4.0, original_length=64),
    "xpos": xpos(causal=True),
    "xpos of an encoder": xpos(causal=False),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_scores_depend_on_distance_only(name: str) -> None:
    steps = 6
    query, key = torch.randn(2, 8, generator=generator())
    queries, keys = ROTATIONS[name](query.expand(steps, 8), key.expand(steps, 8), 0, steps)
    scores = queries @ keys.T
    for offset in range(-steps + 1, steps):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores.std() > 1e-2


@pytest.mark.parametrize("name", ROTATIONS)
def test_a_rotation_does_not_depend_on_how_it_is_requested(name: str) -> None:
    x = torch.ones(1, 600, 8)
    whole = ROTATIONS[name](x, x, 0, 600)
    for start in (0, 3, 511, 512, 599):
        one = ROTATIONS[name](x[:, :1], x[:, :1], start, 1)
        for actual, expected in zip(one, whole, strict=True):
            torch.testing.assert_close(actual, expected[:, start : start + 1])


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rotation_is_a_complex_product(interleaved: bool) -> None:
    x = torch.randn(5, 8, generator=generator(), dtype=torch.float64)
    pairs = x.unflatten(-1, (4, 2)) if interleaved else x.unflatten(-1, (2, 4)).transpose(1, 2)
    angles = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    turned = torch.polar(torch.ones(5, 4).double(), angles.double()) * torch.complex(
        pairs[..., 0].contiguous(), pairs[..., 1].contiguous()
    )
    expected = torch.view_as_real(turned)
    expected = expected if interleaved else expected.transpose(1, 2)
    actual, _ = rotary(interleaved=interleaved)(x, x, 0, 5)
    torch.testing.assert_close(actual, expected.flatten(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ROTATIONS)
def test_a_rotation_has_the_gradient_of_its_formula(name: str) -> None:
    x = torch.randn(2, 3, 2, 8, generator=generator(), dtype=torch.float64, requires_grad=True)

    def turn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turned: tuple[torch.Tensor, torch.Tensor] = ROTATIONS[name](x, 2 * x, 5, 2)
        return turned

    assert torch.autograd.gradcheck(turn, x)


def test_angles_are_not_rounded_by_half() -> None:
    """At position 4,000, a cosine from an angle in bfloat16 would be noise."""
    exact, rounded = rotary(), rotary().bfloat16()
    x = torch.randn(1, 8, generator=generator()).bfloat16()
    expected, _ = exact(x.double(), x.double(), 4000, 1)
    actual, _ = rounded(x, x, 4000, 1)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected.bfloat16())
    assert not rounded.state_dict()


def test_linear_scaling_divides_positions() -> None:
    x = torch.randn(1, 8, generator=generator())
    plain, _ = rotary()(x, x, 3, 1)
    stretched, _ = ROTATIONS["linear"](x, x, 12, 1)
    torch.testing.assert_close(plain, stretched)


def test_ntk_stretches_the_slowest_rotation_by_the_factor_and_keeps_the_fastest() -> None:
    plain, scaled = (ROTATIONS[name].frequencies(8) for name in ("rotary", "ntk"))
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[-1], plain[-1] / 4.0)


def test_yarn_is_the_formula() -> None:
    """The published constants for Dh = 128, theta = 10,000, length 2,048, factor 16."""
    yarn = rotary(128, scaling="yarn", factor=16.0, original_length=2048)
    plain, scaled = rotary(128).frequencies(128), yarn.frequencies(128)
    turns = 2048 * plain / (2 * math.pi)
    ratio = plain / scaled
    torch.testing.assert_close(ratio[turns > 33], torch.ones(int((turns > 33).sum())))
    torch.testing.assert_close(ratio[turns < 0.9], torch.full((int((turns < 0.9).sum()),), 16.0))
    assert (ratio.diff() >= -1e-5).all()
    turned, _ = yarn(torch.ones(1, 128), torch.ones(1, 128), 0, 1)
    torch.testing.assert_close(turned, torch.full((1, 128), 0.1 * math.log(16.0) + 1.0))


def test_xpos_decays_with_distance_by_the_published_constants() -> None:
    zeta = torch.tensor([0.285714, 0.464286, 0.642857, 0.821429])
    for pair in range(4):
        x = torch.zeros(2, 8)
        x[:, 2 * pair : 2 * pair + 2] = 1.0
        query, key = xpos(causal=True)(x, x, 100, 2)
        plain = rotary(interleaved=True)(x, x, 100, 2)
        decay = (query[1] @ key[0]) / (plain[0][1] @ plain[1][0])
        torch.testing.assert_close(decay, zeta[pair] ** (1 / 512), atol=1e-5, rtol=1e-5)


def test_alibi_is_the_published_penalty() -> None:
    torch.testing.assert_close(
        torch.tensor(alibi_slopes(8)), torch.tensor([2.0 ** -(head + 1) for head in range(8)])
    )
    expected = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]  # the authors' six heads
    torch.testing.assert_close(torch.tensor(alibi_slopes(6)), torch.tensor(expected))
    distances = torch.tensor([[0, -2], [2, 0]])
    bias = AlibiBias(2, False)(distances)
    assert bias.tolist() == [[[0.0, -0.125], [-0.125, 0.0]], [[0.0, -0.0078125], [-0.0078125, 0]]]


# distance of the key seen from the query -> bucket, of 32 buckets up to a distance of 128
BOTH_WAYS = {-300: 15, -127: 15, -64: 14, -20: 10, -16: 10, -15: 9, -9: 8, -8: 8, -7: 7, -1: 1}
BOTH_WAYS |= {0: 0, 1: 17, 7: 23, 8: 24, 9: 24, 15: 25, 16: 26, 64: 30, 127: 31, 300: 31}
BACKWARD = {-300: 31, -127: 31, -64: 26, -20: 17, -16: 16, -15: 15, -9: 9, 0: 0, 5: 0}


@pytest.mark.parametrize(("causal", "expected"), [(False, BOTH_WAYS), (True, BACKWARD)])
def test_buckets_are_those_of_t5(causal: bool, expected: dict[int, int]) -> None:
    bias = BucketBias(3, causal, num_buckets=32, max_distance=128)
    distances = -torch.tensor([list(expected)])  # ours count from the key to the query
    assert bias.buckets(distances).tolist() == [list(expected.values())]
    bias.draw_parameters()
    values = bias(distances)
    assert values.shape == (3, 1, len(expected))
    torch.testing.assert_close(values[1, 0], bias.weight[list(expected.values()), 1])


@pytest.mark.parametrize("bias", [None, AlibiBias(2, False)])
def test_a_window_leaves_no_weight_outside(bias: AlibiBias | None) -> None:
    distances = torch.arange(6)[:, None] - torch.arange(6)
    window: Tensor = Window(2, bias, causal=False)(distances)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weights = window.to(dtype).float().softmax(-1)
        outside = (distances.abs() >= 2).expand_as(weights)
        assert (weights[outside] == 0.0).all()
        assert (weights[~outside] > 0.0).all()
    only_padding = torch.full((6,), -math.inf).index_fill(0, torch.tensor([0]), 0.0)
    assert (window + only_padding).softmax(-1).isfinite().all()


def test_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="even head width, not 7"):
        rotary(7)
