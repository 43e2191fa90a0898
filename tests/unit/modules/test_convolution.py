"""Convolutions in bands: they compute their definition, whole and token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq.modules.body import Context
from ds_seq.modules.convolution import Convolution, convolve, make_kernels
from ds_seq.modules.kv_cache import BeamPaths, KeptSentences
from ds_seq.modules.linear import Linear

HEADS, CHANNELS = 3, 6


def _by_definition(x: Tensor, kernels: Tensor, left: int) -> Tensor:
    """Sum up token by token."""
    length, size = x.size(1), kernels.size(-1)
    out = torch.zeros_like(x)
    kernels = kernels.expand(*x.shape[:2], -1, -1)
    for token in range(length):
        for k in range(size):
            other = token + k - left
            if 0 <= other < length:
                weights = kernels[:, token, :, k].repeat_interleave(CHANNELS // HEADS, -1)
                out[:, token] += weights * x[:, other]
    return out


@pytest.mark.parametrize("size", [1, 4, 50])
@pytest.mark.parametrize("length", [1, 32, 45])
@pytest.mark.parametrize("is_fixed", [True, False], ids=["fixed", "dynamic"])
def test_bands_compute_the_definition(length: int, size: int, is_fixed: bool) -> None:
    x = torch.randn(2, length, CHANNELS, dtype=torch.float64, requires_grad=True)
    tokens = (1, 1) if is_fixed else (2, length)
    kernels = torch.randn(*tokens, HEADS, size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    for left in {size - 1, (size - 1) // 2}:
        found, expected = convolve(x, kernels, left), _by_definition(x, kernels, left)
        torch.testing.assert_close(found, expected)
        pairs = [torch.autograd.grad((y * weights).sum(), (x, kernels)) for y in (found, expected)]
        for ours, slow in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, slow)


def _made(is_fixed: bool, causal: bool = True, size: int = 5, dropped: float = 0.0) -> Convolution:
    kernels = make_kernels(CHANNELS, HEADS, size, 1 if is_fixed else Linear)
    options = (CHANNELS, kernels, HEADS, size, causal, True, True, dropped, 0.0)
    made = Convolution(8, *options)
    for module in (made.input, made.output, kernels):
        module.draw_parameters()
    return made


@pytest.mark.parametrize("is_fixed", [True, False], ids=["fixed", "dynamic"])
def test_kernels_of_a_large_weight_stay_finite_in_half_precision(is_fixed: bool) -> None:
    made = _made(is_fixed)
    with torch.no_grad():
        for parameter in made.kernels.parameters():
            parameter.mul_(1e4)
    y = made.half()(torch.randn(1, 9, 8).half(), Context()).y
    assert y.isfinite().all() and y.dtype == torch.float16


def test_dropout_draws_the_kernel_of_each_token_anew() -> None:
    made = _made(is_fixed=True, dropped=0.5)
    x = torch.ones(1, 40, 8)
    inner = [made.train()(x, Context()).y[0, 10:].unique(dim=0) for _ in range(2)]
    assert all(len(each) > 5 for each in inner), "the same input has different kernels"
    assert len(made.eval()(x, Context()).y[0, 10:].round(decimals=5).unique(dim=0)) == 1


@pytest.mark.parametrize("is_fixed", [True, False], ids=["fixed", "dynamic"])
def test_hypotheses_keep_their_own_columns(is_fixed: bool) -> None:
    """Every hypothesis is that of one text, through reordering and a batch that shrinks."""
    made, beam, length = _made(is_fixed).eval(), 3, 12
    inputs = torch.randn(length, 2, beam, 8)
    texts = inputs.new_empty(0, 2 * beam, 8)  # what each hypothesis has read
    paths = BeamPaths(2, beam, length, inputs)
    past = made.start_past(Context(), paths)
    rows = 2 * beam
    with torch.inference_mode():
        for step in range(length):
            paths.advance()
            newest = inputs[step, : rows // beam]
            texts = torch.cat([texts, newest.reshape(1, rows, 8)])
            y = made.step(newest, past, Context()).flatten(0, 1)
            whole = made(texts.transpose(0, 1), Context()).y[:, -1]
            torch.testing.assert_close(y, whole, atol=1e-5, rtol=1e-5)
            order = torch.cat(
                [torch.randint(beam, (beam,)) + beam * s for s in range(rows // beam)]
            )
            past.reorder(order)
            texts = texts[:, order]
            if step == 6:
                past.keep_sentences(KeptSentences.of(torch.tensor([1])))
                texts, inputs, rows = texts[:, beam:], inputs[:, 1:], beam
