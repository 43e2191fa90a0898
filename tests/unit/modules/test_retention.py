"""The forms of retention: all compute the same, for any padding, chunk and length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ds_seq.config.model.retention import RetentionConfig
from ds_seq.modules.body import Context
from ds_seq.modules.kv_cache import BeamPaths
from ds_seq.modules.retention import (
    Retention,
    RetentionRotation,
    decays_of,
    retain,
)

HEADS, WIDTH, VALUES = 3, 4, 5
DECAYS = torch.tensor(decays_of(4.0, 200.0, HEADS))


def _parts(length: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    query, key = torch.randn(2, batch, HEADS, length, WIDTH)
    return query, key, torch.randn(batch, HEADS, length, VALUES)


def _by_definition(parts: tuple[Tensor, Tensor, Tensor], mask: Tensor, causal: bool) -> Tensor:
    """Sum up token by token, in float64."""
    query, key, value = (x.double() for x in parts)
    out = torch.zeros_like(value)
    for row, head, token in torch.cartesian_prod(*map(torch.arange, value.shape[:3])).tolist():
        taken, weight, total = torch.zeros(VALUES).double(), 0.0, 0.0
        for other in range(token + 1 if causal else value.size(2)):
            if mask[row, other]:
                decay = math.exp(DECAYS[head].double() * abs(token - other))
                score = decay * float(query[row, head, token] @ key[row, head, other])
                taken += score * value[row, head, other]
                weight, total = weight + score, total + decay
        out[row, head, token] = taken / max(abs(weight), math.sqrt(max(total, 1.0)))
    return out


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("padding", ["none", "right", "left", "inside", "a whole row"])
def test_chunks_of_any_size_compute_the_definition(padding, causal):
    length = 11
    mask = torch.ones(2, length).bool()
    mask[1] = {
        "none": mask[1],
        "right": torch.arange(length) < 6,
        "left": torch.arange(length) >= 4,
        "inside": (torch.arange(length) % 5 != 2) & (torch.arange(length) != 3),
        "a whole row": ~mask[1],
    }[padding]
    parts = _parts(length)
    expected = _by_definition(parts, mask, causal)
    for chunk in (1, 2, 3, 4, length - 1, length, 100):
        given = None if padding == "none" else mask
        found = retain(*parts, given, DECAYS, causal, chunk)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("length", [1, 63, 700])
def test_chunks_have_the_values_and_gradients_of_the_parallel_form(length, causal):
    parts = [x.requires_grad_() for x in _parts(length)]
    mask = torch.rand(2, length) < 0.8
    weights = torch.randn(2, HEADS, length, VALUES)
    whole = retain(*parts, mask, DECAYS, causal, length)
    expected = torch.autograd.grad((whole * weights).sum(), parts)
    for chunk in (7, 64):
        found = retain(*parts, mask, DECAYS, causal, chunk)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
        gradients = torch.autograd.grad((found * weights).sum(), parts)
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-5)


def _made(causal: bool, chunk: int | None = None, width: int = 16) -> Retention:
    decays = decays_of(4.0, None, 2)
    made = Retention(
        width,
        2,
        24,
        decays,
        causal,
        10000.0,
        "silu",
        1e-6,
        RetentionConfig(chunk_size=chunk).chunk_of,
    )
    made.qkvg.draw_parameters()
    with torch.no_grad():  # products that are large enough for the norm of the weights to matter
        made.qkvg.weight.mul_(8.0)
    return made


def _steps(module: Retention, x: Tensor) -> Tensor:
    """Return the output of the recurrent form for x (B, T, D)."""
    paths = BeamPaths(len(x), 1, x.size(1), x)
    past = module.start_past(Context(), paths)
    outputs = []
    for token in x.unbind(1):
        paths.advance()
        outputs.append(module.step(token[:, None], past, Context()))
    return torch.cat(outputs, 1)


def test_the_recurrent_form_is_the_parallel_one():
    x, parallel = torch.randn(2, 90, 16), _made(causal=True)
    chunked = _made(causal=True, chunk=13)
    chunked.load_state_dict(parallel.state_dict())
    with torch.inference_mode():
        whole = parallel(x, Context()).y
        torch.testing.assert_close(_steps(parallel, x), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(chunked(x, Context()).y, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 4])
def test_padding_on_either_side_is_as_if_it_were_not_there(chunk):
    """Only distances count, so that a text may begin anywhere in its row."""
    module, x = _made(causal=False, chunk=chunk), torch.randn(1, 7, 16)
    padded = torch.randn(1, 18, 16)
    padded[:, 5:12] = x
    mask = torch.zeros(1, 18).bool()
    mask[:, 5:12] = True
    context = Context(mask, attention_mask=torch.zeros(1, 1, 1, 18))
    with torch.no_grad():
        found = module(padded, context).y[:, 5:12]
        torch.testing.assert_close(found, module(x, Context()).y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
def test_long_texts_in_half_precision_are_finite_and_near(dtype, causal):
    """Sums of thousands of products are in float32, as are angles and decays."""
    length = 3000
    module, x = _made(causal), 3 * torch.randn(1, length, 16)
    half = _made(causal).to(dtype)
    x = x.to(dtype).requires_grad_()
    with torch.no_grad():
        module.load_state_dict(
            {name: value.to(dtype) for name, value in module.state_dict().items()}
        )
        half.load_state_dict(module.state_dict())
    found = half(x, Context()).y
    found.sum().backward()
    assert found.dtype == dtype
    assert x.grad is not None
    assert x.grad.isfinite().all()
    expected = module(x.float(), Context()).y.detach()
    scale = float(expected.std())
    torch.testing.assert_close(found.detach().float() / scale, expected / scale, atol=0.1, rtol=0.1)


def test_heads_forget_at_the_published_rates():
    found = torch.tensor(decays_of(32.0, None, 8), dtype=torch.float64).exp()
    published = 1 - 2.0 ** (-5 - torch.arange(8, dtype=torch.float64))
    torch.testing.assert_close(found, published)
    memories = 1 / -torch.tensor(decays_of(8.0, 512.0, 4), dtype=torch.float64).expm1()
    assert memories.tolist() == pytest.approx([8, 32, 128, 512])


def test_a_decay_that_float32_cannot_tell_from_none_sums_all_tokens():
    query, key, value = torch.randn(3, 1, 1, 50, 4)
    slowest = torch.tensor(decays_of(32.0, None, 64)[-1:])
    weights = (query @ key.transpose(-1, -2)).tril()
    sums = torch.arange(1, 51).sqrt()
    expected = weights @ value / torch.maximum(weights.sum(-1).abs(), sums)[..., None]
    found = retain(query, key, value, None, slowest, True, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_angles_are_those_of_the_paper_and_exact_far_away():
    rotation = RetentionRotation(8, 10000.0, interleaved=True)
    frequencies = rotation.frequencies(8)
    assert frequencies.tolist() == pytest.approx([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4])
    query = torch.randn(1, 1, 8)
    here = rotation(query, query, 9000, 1)
    there = rotation(query, query, 9003, 1)
    near = rotation(query, query, 0, 1), rotation(query, query, 3, 1)
    products = [(one[0] * other[1]).sum() for one, other in ((here, there), near)]
    torch.testing.assert_close(products[0], products[1], atol=1e-3, rtol=1e-3)


def test_an_empty_batch_is_an_empty_batch():
    module = _made(causal=False)
    for shape in ((0, 5, 16), (2, 0, 16)):
        mask = torch.ones(shape[:2]).bool()
        context = Context(mask, attention_mask=torch.zeros(shape[0], 1, 1, shape[1]))
        assert module(torch.zeros(shape), context).y.shape == shape
