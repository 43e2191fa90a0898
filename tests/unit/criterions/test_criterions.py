"""Worked numbers and properties of the losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.criterions.base import Loss
from ds_seq.criterions.cross_entropy import CrossEntropy, Smoothing, smoothed_cross_entropy
from ds_seq.criterions.distillation import Distillation, kl_divergence
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.dataset import Batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.moe.losses import GATE_LOSSES

PAD = 1


def batch_of(targets: list[list[int]]) -> Batch:
    tgt_out = torch.tensor(targets)
    return Batch(
        indices=torch.arange(len(targets)),
        src=tgt_out,
        tgt_in=tgt_out,
        tgt_out=tgt_out,
        num_tokens=int((tgt_out != PAD).sum()),
        num_sentences=len(targets),
    )


def output_of(logits: Tensor, **gate_losses: float) -> ModelOutput:
    return ModelOutput(logits, {k: torch.tensor(v) for k, v in gate_losses.items()}, [])


@pytest.mark.parametrize(
    ("form", "expected"), [("fairseq", (0.640190, 1.710335)), ("torch", (0.590190, 1.718668))]
)
def test_worked_numbers_of_both_smoothings(form: Smoothing, expected: tuple[float, float]) -> None:
    rows = [([1.0, 2, 3, 4], 3), ([0.0, 0, 0, 1], 0)]
    for (logits, target), value in zip(rows, expected, strict=True):
        loss, nll = smoothed_cross_entropy(
            torch.tensor([logits]), torch.tensor([target]), 0.1, form
        )
        assert loss.item() == pytest.approx(value, abs=1e-5)
        assert nll.item() == pytest.approx(-F.log_softmax(torch.tensor(logits), -1)[target].item())


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_value_and_gradient_equal_torch(epsilon: float) -> None:
    logits = torch.randn(7, 11, requires_grad=True)
    targets = torch.randint(11, (7,))
    ours = smoothed_cross_entropy(logits, targets, epsilon, "torch")[0]
    theirs = F.cross_entropy(logits, targets, label_smoothing=epsilon, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    mine, reference = (torch.autograd.grad(3 * x, logits)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, reference)


def test_half_precision_logits_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds_seq.criterions.cross_entropy._CHUNK_ELEMENTS", 33)
    exact = torch.randn(10, 11).bfloat16().float().requires_grad_()
    half = exact.detach().bfloat16().requires_grad_()
    targets = torch.randint(11, (10,))
    results = [smoothed_cross_entropy(x, targets, 0.1, "fairseq") for x in (exact, half)]
    torch.testing.assert_close(results[0], results[1])
    for loss, _ in results:
        loss.backward()
    assert half.grad is not None and exact.grad is not None
    torch.testing.assert_close(half.grad.float(), exact.grad, rtol=1e-2, atol=1e-2)


def test_no_row_at_all_has_zero_loss_and_a_gradient() -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    loss, _ = smoothed_cross_entropy(logits, torch.zeros(0, dtype=torch.int64), 0.1, "fairseq")
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None


def test_padding_does_not_count() -> None:
    criterion = CrossEntropy(0.1, "fairseq", PAD)
    logits = torch.randn(3, 6)
    padded, plain = batch_of([[4, 5, PAD, PAD], [3, PAD, PAD, PAD]]), batch_of([[4, 5, 3]])
    torch.testing.assert_close(
        criterion(output_of(logits), padded).total, criterion(output_of(logits), plain).total
    )


def test_distillation_worked_numbers() -> None:
    student = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64)
    for teacher, value in (([1.0, 1, 2, 5], 0.215074), ([4.0, 3, 2, 1], 1.985305)):
        assert kl_divergence(student, torch.tensor([teacher])).item() == pytest.approx(
            value, abs=1e-5
        )
    with_temperature = kl_divergence(student, torch.tensor([[1.0, 1, 2, 5]]), temperature=2.0)
    assert with_temperature.item() == pytest.approx(0.402989, abs=1e-5)


def test_distillation_from_itself_has_no_kd_gradient() -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    batch = batch_of([[4, 5, 3]])
    criterion = Distillation(
        CrossEntropy(0.0, "torch", PAD), lambda _: logits.detach(), 0.0, 1.0, temperature=1.5
    )
    loss = criterion(output_of(logits), batch)
    loss.total.backward()
    assert loss.parts["kd"].item() == pytest.approx(0.0, abs=1e-6) and logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-6)


def combined(weights: dict[str, float | None], logits: Tensor, batch: Batch) -> Loss:
    criterion = ModelAndBase(CrossEntropy(0.1, "fairseq", PAD), weights, GATE_LOSSES)
    return criterion(output_of(logits, load_balance=1.5, router_z=0.25), batch)


def test_gate_losses_are_weighted_by_name_and_logged_unweighted() -> None:
    logits, batch = torch.randn(3, 6), batch_of([[4, 5, 3]])
    base = CrossEntropy(0.1, "fairseq", PAD)(output_of(logits), batch).total
    everything = combined({}, logits, batch)
    torch.testing.assert_close(everything.total, base + 3 * (1.5 + 0.25))
    weighted = combined({"load_balance": 0.01, "router_z": None, "base": 2.0}, logits, batch)
    torch.testing.assert_close(weighted.total, 2 * base + 3 * 0.01 * 1.5)
    assert combined({"router_z": 0}, logits, batch).total.item() == pytest.approx(
        (base + 3 * 1.5).item()
    )
    for loss in (everything, weighted):
        assert loss.parts["load_balance"].item() == pytest.approx(4.5)
        assert loss.parts["router_z"].item() == pytest.approx(0.75)
        torch.testing.assert_close(loss.parts["ce"], base)


def test_total_per_token_does_not_change_when_the_batch_is_doubled() -> None:
    logits, once, twice = torch.randn(3, 6), batch_of([[4, 5, 3]]), batch_of([[4, 5, 3]] * 2)
    first = combined({}, logits, once).total / once.num_tokens
    second = combined({}, logits.repeat(2, 1), twice).total / twice.num_tokens
    torch.testing.assert_close(first, second)


def test_an_unknown_loss_name_is_refused() -> None:
    with pytest.raises(UserError, match="'gate'; known: base, load_balance, router_z"):
        ModelAndBase(CrossEntropy(0.1, "fairseq", PAD), {"gate": 1.0}, GATE_LOSSES)
