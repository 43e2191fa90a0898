"""Cross entropy and divergences where scores, gradients or factors leave the range of a dtype."""

from __future__ import annotations

import math

import pytest
import torch

from ds_seq.criterions.cross_entropy import smoothed_cross_entropy
from ds_seq.criterions.token_loss import TokenTargets, token_loss
from ds_seq.names import Divergence
from tests.unit.criterions.made import CASES, DIVERGENCES, distil


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("divergence", "dense"), CASES)
def test_extreme_scores_stay_finite(
    divergence: Divergence, dense: bool, dtype: torch.dtype
) -> None:
    lowest = -math.inf if divergence != "reverse_kl" else -60000.0
    scores = torch.tensor(
        [
            [60000.0, -60000, 0, 0],
            [-60000.0, 60000, 0, 0],
            [0.0, 0, 0, 0],
            [-60000.0, -60000, -60000, -60000],
            [60000.0, 60000, 60000, 60000],
        ]
    )
    others = torch.tensor([[lowest, 0, lowest, 1], [60000.0, -60000, 0, lowest], [lowest, 5, 5, 5]])
    for teacher in others.to(dtype):
        student = scores.to(dtype).requires_grad_()
        said = teacher.expand(5, 4)
        how = distil(1.0, divergence, 0.5, None if dense else 2)
        targets = TokenTargets(torch.zeros(5, dtype=torch.int64), said)
        loss = token_loss(student, targets, (0.9, 0.025), 1.0, how)
        loss.total.backward()
        assert student.grad is not None and student.grad.isfinite().all()
        assert torch.stack(loss).isfinite().all()
        assert loss.kd.item() >= 0.0
        if divergence in ("js", "tv"):  # T^2 times their bounds
            bound = math.log(2) if divergence == "js" else 1.0
            assert loss.kd.item() <= 0.25 * 5 * bound * (1 + 1e-5)


@pytest.mark.parametrize("divergence", [None, *DIVERGENCES])
@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_survive_half_precision(
    divergence: Divergence | None, selected: bool, dtype: torch.dtype
) -> None:
    """Probabilities of at most 1e-7 are 0 in float16 without a scale."""
    rows, words = 6, 40
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, words, generator=generator) - 8
    logits[:, 3] = 8.0
    logits, teacher = logits.to(dtype), torch.randn(rows, words, generator=generator).to(dtype)
    teacher[:, 3] = 17.0
    targets = TokenTargets(
        torch.full((rows,), 3),
        None if divergence is None else teacher,
        (lambda nll: torch.arange(0, rows, 2)) if selected else None,
    )
    how = distil(1.0, divergence or "forward_kl")
    gradients = []
    for precision in (dtype, torch.float32):
        student = logits.clone().to(precision).requires_grad_()
        loss = token_loss(student, targets, (1.0, 0.0), 1.0, how)
        (2.0**13 * loss.total).backward()
        assert student.grad is not None
        gradients.append(student.grad.float())
    half, single = gradients
    assert single.abs().median() / 2**13 < 6e-7  # a subnormal number in float16
    places = single.abs() > 1e-4  # below that float16 itself has steps of 6e-8
    assert places.float().mean() > 0.9
    rounding = 2e-2 if dtype == torch.bfloat16 else 3e-3
    if divergence == "reverse_kl" and dtype == torch.float16:
        rounding = 6e-3  # its gradients may be large, which leaves less room below
    torch.testing.assert_close(half[places], single[places], rtol=rounding, atol=0)


def test_a_weight_cannot_overflow_half_precision() -> None:
    logits, teacher, gradients = torch.randn(5, 9).half(), torch.randn(5, 9), []
    for dtype in (torch.float16, torch.float32):
        student = logits.clone().to(dtype).requires_grad_()
        targets = TokenTargets(torch.arange(5), teacher)
        loss = token_loss(student, targets, (1.0, 0.0), 3000.0, distil(2000.0, temperature=10.0))
        loss.total.backward(torch.tensor(1e-3))
        assert student.grad is not None
        gradients.append(student.grad.float())
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_factor_beyond_half_precision_is_no_infinity(dtype: torch.dtype) -> None:
    """A factor of ranks, accumulation, loss scale and tokens; the gradient itself is in range."""
    teacher = torch.randn(4, 9)
    logits = teacher.clone().to(dtype).requires_grad_()
    targets = TokenTargets(torch.zeros(4, dtype=torch.int64), logits.detach() + 1e-3)
    token_loss(logits, targets, (1.0, 0.0), 0.0, distil()).total.backward(torch.tensor(2.0**17))
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("words", [30, 20000])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_common_offset_of_all_scores_changes_nothing(words: int, divergence: Divergence) -> None:
    """Also one that leaves the logarithm of the sum three digits behind the point."""
    generator = torch.Generator().manual_seed(3)
    student = 3 * torch.randn(4, words, generator=generator) + 1e4
    teacher = 3 * torch.randn(4, words, generator=generator) - 1e4
    tokens = torch.randint(words, (4,), generator=generator)
    exact = student.double().log_softmax(-1)
    nll = torch.nn.functional.nll_loss(exact, tokens, reduction="sum")
    smoothed = 0.9 * nll - 0.1 / words * exact.sum()
    plain = smoothed_cross_entropy(student, tokens, 0.1, "torch")
    how = distil(1.0, divergence)
    loss = token_loss(student, TokenTargets(tokens, teacher), (0.9, 0.1 / words), 1.0, how)
    for found, expected in ((plain[0], smoothed), (plain[1], nll), (loss.ce, smoothed)):
        assert found.item() == pytest.approx(expected.item(), abs=4e-5)
    near_zero = TokenTargets(tokens, (teacher.double() + 1e4).float())
    shifted = (student.double() - 1e4).float()  # exact: the scores were rounded before
    without = token_loss(shifted, near_zero, (0.9, 0.1 / words), 1.0, how)
    assert loss.kd.item() == pytest.approx(without.kd.item(), abs=1e-4)
