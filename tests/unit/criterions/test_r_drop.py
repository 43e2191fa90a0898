"""R-Drop against its formula in autograd, and what passes the model twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq.config.criterion import CrossEntropyConfig, ModelAndBaseConfig
from ds_seq.criterions import build_criterion
from ds_seq.criterions import cross_entropy as module
from ds_seq.criterions.cross_entropy import cross_entropy
from ds_seq.data.splitting import repeated
from tests.unit.criterions.made import batch_of, output_of

BATCH = batch_of([[4, 5, 3, 6, 2]])
WEIGHT = 5.0


def definition(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of both passes (2 N, V), as the paper writes it, halved."""
    p, q = torch.log_softmax(logits.double(), 1).chunk(2)
    forward = (p.exp() * (p - q)).sum()
    backward = (q.exp() * (q - p)).sum()
    ce = sum(cross_entropy(half, targets, 0.1, "fairseq") for half in (p, q))
    return 0.5 * ce + 0.5 * WEIGHT * 0.5 * (forward + backward)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
@pytest.mark.parametrize("block", [2 * 11, 1 << 18])
def test_value_and_gradient_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, block: int
) -> None:
    monkeypatch.setattr(module, "_CPU_ELEMENTS", block)  # two rows at a time, or all
    criterion = build_criterion(CrossEntropyConfig(r_drop=WEIGHT), None)
    logits = (3 * torch.randn(2 * BATCH.num_tokens, 11)).to(dtype).requires_grad_()
    loss = criterion(output_of(logits), BATCH)
    loss.total.backward()
    exact = logits.detach().double().requires_grad_()
    expected = definition(exact, BATCH.real_labels)
    expected.backward()
    assert exact.grad is not None and logits.grad is not None
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
    parts = loss.parts
    torch.testing.assert_close(parts["ce"] + 0.5 * WEIGHT * parts["r_drop"], loss.total.detach())


def test_equal_passes_cost_what_one_costs() -> None:
    criterion = build_criterion(CrossEntropyConfig(r_drop=WEIGHT), None)
    plain = build_criterion(CrossEntropyConfig(), None)
    logits = torch.randn(BATCH.num_tokens, 11)
    twice = criterion(output_of(logits.repeat(2, 1)), BATCH)
    torch.testing.assert_close(twice.total, plain(output_of(logits), BATCH).total)
    assert abs(float(twice.parts["r_drop"])) < 1e-6


def test_validation_passes_once() -> None:
    criterion = build_criterion(CrossEntropyConfig(r_drop=WEIGHT), None)
    criterion.train(False)
    logits = torch.randn(BATCH.num_tokens, 11)
    once = criterion(output_of(logits), BATCH)
    assert set(once.parts) == {"ce", "nll"}


def test_router_losses_are_added_and_the_base_says_how_often_a_batch_is_read() -> None:
    base = CrossEntropyConfig(r_drop=WEIGHT)
    both = build_criterion(ModelAndBaseConfig(base=base), None)
    alone = build_criterion(base, None)
    assert both.num_passes == alone.num_passes == 2
    output = output_of(torch.randn(2 * BATCH.num_tokens, 11), load_balance=1.5)
    expected = alone(output, BATCH).total + BATCH.num_tokens * 1.5
    torch.testing.assert_close(both(output, BATCH).total, expected)


def test_an_empty_batch_has_the_same_parts() -> None:
    """Ranks add up their parts by name, so one without work must not leave any out."""
    criterion = build_criterion(CrossEntropyConfig(r_drop=WEIGHT), None)
    empty = batch_of([[1]])
    loss = criterion(output_of(torch.zeros(0, 11, requires_grad=True)), empty)
    loss.total.backward()
    assert set(loss.parts) == {"ce", "nll", "r_drop"} and loss.total.item() == 0.0


def test_repeated_batches_hold_each_sentence_in_each_pass() -> None:
    batch = batch_of([[4, 5, 2], [3, 2, 1]])
    twice = repeated(batch, 2)
    assert twice.num_tokens == 2 * batch.num_tokens and twice.num_sentences == 4
    torch.testing.assert_close(twice.real_labels, batch.real_labels.repeat(2))
    for once, both in zip(batch.inputs[:4], twice.inputs[:4], strict=True):
        torch.testing.assert_close(both, torch.cat([once, once]))
    assert twice.inputs.num_targets == 2 * batch.inputs.num_targets
