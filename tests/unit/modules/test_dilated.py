"""Dilated attention is one softmax over the keys that the paper's formula counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ds_seq.modules.attention import SelfAttention
from ds_seq.modules.body import Context
from ds_seq.modules.dilated import DilatedAttention, Segments, attend_in_segments
from ds_seq.modules.kv_cache import BeamPaths, KeyValue
from ds_seq.modules.segment_attention import _BACKWARD, _FORWARD

HEADS, WIDTH = 3, 4
PAIRS = {
    "one": ((4, 1),),
    "two": ((4, 1), (8, 2)),
    "dilation does not divide": ((3, 1), (7, 2), (16, 3)),
    "more tokens apart than heads": ((2, 1), (16, 5)),
}
KERNELS = {
    "fused": [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION],
    "plain": [SDPBackend.MATH],
}


def _segments(pairs: Any, causal: bool, dropout: float = 0.0) -> Segments:
    return Segments(pairs, torch.arange(HEADS), causal, dropout)


def _parts(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        torch.randn(batch, HEADS, length, WIDTH, dtype=dtype).requires_grad_() for _ in range(3)
    ]


def _by_formula(parts: list[Tensor], mask: Tensor, pairs: Any, causal: bool) -> Tensor:
    """Compute each length on its own, and mix the results by their divisors, token by token."""
    query, key, value = parts
    outputs = []
    for row, head, token in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        taken, total = torch.zeros(WIDTH).to(query), torch.zeros(()).to(query)
        for segment, dilation in pairs:
            start, offset = token // segment * segment, head % dilation
            used = range(start + offset, min(start + segment, query.size(2)), dilation)
            if token not in used:
                continue
            for other in used:
                if mask[row, other] and not (causal and other > token):
                    score = (query[row, head, token] @ key[row, head, other]) / math.sqrt(WIDTH)
                    taken = taken + score.exp() * value[row, head, other]
                    total = total + score.exp()
        outputs.append(taken / total if mask[row, token] else taken)
    out = torch.stack(outputs).view(query.shape)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("pairs", PAIRS)
def test_values_and_gradients_are_those_of_the_formula(pairs, causal, kernel):
    for length, real in ((1, 1), (8, 8), (11, 6)):
        parts, mask = _parts(length), torch.ones(2, length).bool()
        mask[1, real:] = False
        weights = torch.randn(2, length, HEADS * WIDTH).double() * mask[..., None]
        expected = _by_formula(parts, mask, PAIRS[pairs], causal)
        gradients = torch.autograd.grad((expected * weights).sum(), parts)
        with sdpa_kernel(KERNELS[kernel]):
            given = None if real == length else mask
            memory, segments = KeyValue(*parts[1:]), _segments(PAIRS[pairs], causal)
            found = attend_in_segments(parts[0], memory, given, segments)
            torch.testing.assert_close(found * mask[..., None], expected * mask[..., None])
            others = torch.autograd.grad((found * weights).sum(), parts)
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(gradient, other)


def test_the_bias_by_counts_is_the_same_attention():
    for pairs in PAIRS.values():
        for causal in (True, False):
            query, key, value = _parts(19)
            places = torch.arange(19)
            segments = _segments(pairs, causal)
            scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
            weights = (scores + segments.bias(places, places)).softmax(-1)
            expected = (weights @ value).transpose(1, 2).flatten(2)
            found = attend_in_segments(query, KeyValue(key, value), None, segments)
            torch.testing.assert_close(found, expected)


def test_dropout_has_the_gradients_of_what_it_dropped():
    """Without a fused kernel, the backward pass draws again what was dropped."""
    parts, segments = _parts(5, batch=1), _segments(PAIRS["two"], False, 0.4)

    def attended(*parts: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend_in_segments(parts[0], KeyValue(*parts[1:]), None, segments)

    assert torch.autograd.gradcheck(attended, parts)
    query, *memory = (each.detach().expand(4000, -1, -1, -1) for each in parts)
    many = attend_in_segments(query, KeyValue(*memory), None, segments)
    whole = attend_in_segments(query, KeyValue(*memory), None, segments._replace(dropout=0.0))
    assert (many[0] - whole[0]).abs().max() > 0.05
    torch.testing.assert_close(many.mean(0), whole[0], atol=0.1, rtol=0.0)


def _pair(causal: bool, segments: Any, heads: int = 3) -> tuple[SelfAttention, DilatedAttention]:
    plain = SelfAttention(12, heads, 0.0, causal)
    plain.qkv.draw_parameters()
    plain.output.draw_parameters()
    dilated = DilatedAttention(12, heads, 0.0, causal, segments=segments)
    dilated.load_state_dict(plain.state_dict())
    return plain, dilated


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
def test_one_segment_that_holds_the_text_is_attention(causal):
    x = torch.randn(2, 30, 12, requires_grad=True)
    mask = torch.ones(2, 30).bool()
    mask[1, 20:] = causal  # padding
    added = torch.zeros(2, 30).masked_fill_(~mask, -math.inf)[:, None, None]
    context = Context(mask, attention_mask=None if causal else added)
    for segments in (((30, 1),), ((100, 1), (200, 1))):
        plain, dilated = _pair(causal, segments)
        expected, found = plain(x, context).y[mask], dilated(x, context).y[mask]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        gradients = [
            torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
            for y, module in ((expected, plain), (found, dilated))
        ]
        for gradient, other in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pairs", PAIRS)
def test_decoding_step_by_step_is_the_whole(pairs):
    _, module = _pair(True, PAIRS[pairs])
    x = torch.randn(2, 40, 12)
    paths = BeamPaths(2, 1, 40, x)
    with torch.inference_mode():
        past = module.start_past(Context(), paths)
        steps = []
        for token in x.unbind(1):
            paths.advance()
            steps.append(module.step(token[:, None], past))
        whole = module(x).y
        torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)
        mapped = module(x, Context(with_maps=True))
    torch.testing.assert_close(mapped.y, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mapped.map.sum(-1), torch.ones(2, HEADS, 40))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_texts_in_half_precision_are_finite_and_near(dtype, kernel):
    length, pairs = 700, ((64, 1), (256, 3))
    parts = [each.detach() * 3 for each in _parts(length, dtype=torch.float32)]
    mask = torch.arange(length) < torch.tensor([[length], [70]])  # whole segments of padding
    halves = [each.to(dtype).requires_grad_() for each in parts]
    with sdpa_kernel(KERNELS[kernel]):
        segments = _segments(pairs, False)
        found = attend_in_segments(halves[0], KeyValue(*halves[1:]), mask, segments)
        exact = [half.detach().float() for half in halves]
        expected = attend_in_segments(exact[0], KeyValue(*exact[1:]), mask, segments)
    assert found.dtype == dtype and found.isfinite().all()
    torch.testing.assert_close(found[mask].float(), expected[mask], atol=0.03, rtol=0.03)
    found[mask].sum().backward()
    assert all(half.grad.isfinite().all() for half in halves)
    assert not halves[1].grad[1, :, 70:].any(), "padding"


def test_an_empty_batch_is_an_empty_batch():
    _, module = _pair(False, ((4, 1),))
    for shape in ((0, 5, 12), (2, 0, 12)):
        mask = torch.ones(shape[:2]).bool()
        added = torch.zeros(shape[0], 1, 1, shape[1])
        y = module(torch.zeros(shape, requires_grad=True), Context(mask, attention_mask=added)).y
        assert y.shape == shape
        y.sum().backward()


def test_the_kernel_is_there() -> None:
    """It is private to PyTorch: a version in which it changed should be noticed here."""
    for operator, arguments in ((_FORWARD, 7), (_BACKWARD, 10)):
        assert len(operator.default._schema.arguments) == arguments
