"""The table of activations: its columns agree with each other."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from ds_seq.modules.activations import ACTIVATIONS, find_activation
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.modules.linear import linear
from ds_seq.moe.experts import Experts
from ds_seq.names import ActivationName
from tests.unit.modules.formulas import GATES, formula

ROWS, WIDTH = 7, 6


def test_the_names_are_those_of_the_config() -> None:
    assert list(ACTIVATIONS) == list(get_args(ActivationName))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_function_is_the_formula(name: str) -> None:
    activation = ACTIVATIONS[name]
    assert activation.is_gated == (name in GATES)
    inner = 3.0 * torch.randn(ROWS, activation.num_parts * WIDTH, dtype=torch.float64)
    torch.testing.assert_close(activation.function(inner), formula(name, inner))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gradient_is_that_of_the_function(name: str) -> None:
    activation = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(1)
    shape = (ROWS, activation.num_parts * WIDTH)
    inner = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    y = activation.function(inner)
    assert y.shape == (ROWS, WIDTH)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(y, inner, grad)
    kept = inner.detach()
    kept = kept.relu() if activation.fused == "relu" else kept
    torch.testing.assert_close(activation.backward(grad.clone(), kept), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fused_and_rest_make_the_whole(name: str) -> None:
    activation = ACTIVATIONS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 4, generator=generator)
    weight = torch.randn(activation.num_parts * WIDTH, 4, generator=generator)
    whole = activation.function(linear(x, weight))
    begun = linear(x, weight, None, activation.fused)
    done = begun if activation.rest is None else activation.rest(begun)
    torch.testing.assert_close(done, whole)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_function_leaves_its_argument_alone(name: str) -> None:
    inner = torch.randn(ROWS, ACTIVATIONS[name].num_parts * WIDTH)
    before = inner.clone()
    ACTIVATIONS[name].function(inner)
    if (rest := ACTIVATIONS[name].rest) is not None:
        rest(inner)
    assert torch.equal(inner, before)


def test_an_unknown_name_is_refused_with_all_known_ones() -> None:
    for make in (
        find_activation,
        lambda name: FeedForward(4, 6, name, 0.0),
        lambda name: Experts(4, 6, 2, 0, name, 0.0, 1),
    ):
        with pytest.raises(ValueError, match="relu, relu_squared, gelu, .*swiglu, not selu"):
            make("selu")
