"""Cross entropy and divergences: worked numbers, gradients, and terms of no weight."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.criterions import cross_entropy as module
from ds_seq.criterions.cross_entropy import (
    cross_entropy,
    smoothed_cross_entropy,
    smoothing_weights,
)
from ds_seq.criterions.token_loss import (
    Distil,
    TokenLoss,
    TokenTargets,
    token_loss,
)
from ds_seq.data.batch import TopTokens
from ds_seq.names import Divergence, Smoothing
from tests.unit.criterions.made import CASES, PARTIAL, distil, top_tokens

EVERY_OTHER = [0, 2, 3, 8, 12]  # of 13 rows


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process two or three rows of about ten words at a time."""
    monkeypatch.setattr(module, "_CPU_ELEMENTS", 40)


@pytest.mark.parametrize(
    ("form", "expected"), [("fairseq", (0.640190, 1.710335)), ("torch", (0.590190, 1.718668))]
)
def test_worked_numbers_of_both_smoothings(form: Smoothing, expected: tuple[float, float]) -> None:
    rows = [([1.0, 2, 3, 4], 3, 0.440190), ([0.0, 0, 0, 1], 0, 1.743668)]
    for (logits, target, plain), value in zip(rows, expected, strict=True):
        loss, nll = smoothed_cross_entropy(
            torch.tensor([logits]), torch.tensor([target]), 0.1, form
        )
        assert loss.item() == pytest.approx(value, abs=1e-5)
        assert nll.item() == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_value_and_gradient_equal_torch(epsilon: float) -> None:
    logits = torch.randn(7, 11, requires_grad=True)
    targets = torch.randint(11, (7,))
    ours = smoothed_cross_entropy(logits, targets, epsilon, "torch")[0]
    theirs = F.cross_entropy(logits, targets, label_smoothing=epsilon, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    mine, reference = (torch.autograd.grad(3 * x, logits)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, reference)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("one_pass", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("form", ["fairseq", "torch"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_the_fused_loss_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, epsilon: float, form: Smoothing, one_pass: bool
) -> None:
    monkeypatch.setattr(module, "_in_one_pass", lambda block: one_pass)
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(29, 17, generator=generator)).requires_grad_()
    targets = torch.randint(17, (29,), generator=generator)
    ours, nll = smoothed_cross_entropy(logits, targets, epsilon, form)
    plain = cross_entropy(logits, targets, epsilon, form)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(nll, cross_entropy(logits, targets, 0.0, form), rtol=1e-6, atol=0)
    found, expected = (torch.autograd.grad(2 * loss, logits)[0] for loss in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("ce_weight", [1.0, 0.3, 3000.0, 0.0])
@pytest.mark.parametrize("teacher", [False, True])
def test_one_pass_writes_the_gradient_that_three_do(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, ce_weight: float, teacher: bool
) -> None:
    """The single pass of a GPU, also with selected rows, whose gradient is added later."""
    results = []
    for one_pass in (False, True):
        monkeypatch.setattr(module, "_in_one_pass", lambda block, one_pass=one_pass: one_pass)
        generator = torch.Generator().manual_seed(1)
        logits, scores = (4 * torch.randn(13, 17, generator=generator) for _ in range(2))
        student = logits.to(dtype).requires_grad_()
        tokens = torch.randint(17, (13,), generator=generator)
        targets = TokenTargets(tokens)
        if teacher:
            targets = TokenTargets(tokens, scores, lambda nll: torch.tensor(EVERY_OTHER))
        loss = token_loss(
            student, targets, smoothing_weights(0.1, 17, "fairseq"), ce_weight, distil()
        )
        loss.total.backward(torch.tensor(1e-2))
        assert student.grad is not None
        results.append([torch.stack(loss), student.grad.float()])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=0)
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    atol = rounding * 1e-2 * max(ce_weight, 1.0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=rounding, atol=atol)


# student [1, 2, 3, 4]: teacher, then forward KL, Jensen-Shannon, total variation
WORKED = [
    ([1.0, 1, 2, 5], (0.215074, 0.061828, 0.276541)),
    ([4.0, 3, 2, 1], (1.985305, 0.375478, 0.761594)),
]


def divergence_of(student: Tensor, teacher: Tensor | TopTokens, how: Distil) -> float:
    targets = TokenTargets(torch.zeros(len(student), dtype=torch.int64), teacher)
    return token_loss(student, targets, (1.0, 0.0), 0.0, how).kd.item()


@pytest.mark.parametrize(("scores", "expected"), WORKED)
def test_worked_numbers_of_divergences(scores: list[float], expected: tuple[float, ...]) -> None:
    student, teacher = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([scores])
    for divergence, value in zip(PARTIAL, expected, strict=True):
        for said in (teacher, top_tokens(teacher, 4)):  # all four tokens are the whole distribution
            found = divergence_of(student, said, distil(divergence=divergence))
            assert found == pytest.approx(value, abs=2e-6)
    # the reverse is the forward with the roles exchanged, which is not the same number
    reverse = divergence_of(student, teacher, distil(divergence="reverse_kl"))
    assert reverse == pytest.approx(divergence_of(teacher, student, distil()), abs=2e-6)
    found = divergence_of(student, torch.tensor([WORKED[0][0]]), distil(divergence="reverse_kl"))
    assert found != pytest.approx(WORKED[0][1][0], abs=1e-3)


def test_worked_number_of_temperature_two() -> None:
    student, teacher = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 1, 2, 5]])
    assert divergence_of(student, teacher, distil(temperature=2.0)) == pytest.approx(
        0.402989, abs=2e-6
    )


@pytest.mark.parametrize("divergence", PARTIAL)
def test_tokens_outside_the_top_have_probability_zero(divergence: Divergence) -> None:
    """A worked example: the teacher keeps two of four equal tokens, the student all four."""
    top = TopTokens(torch.tensor([[2, 0]]), torch.full((1, 2), math.log(0.25)))
    # p = (1/2, 0, 1/2, 0), q = 1/4 each, middle = (3/8, 1/8, 3/8, 1/8)
    js = 0.5 * (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    expected = {"forward_kl": math.log(2), "js": js, "tv": 0.5}[divergence]
    found = divergence_of(torch.zeros(1, 4), top, distil(divergence=divergence))
    assert found == pytest.approx(expected, abs=1e-6)


class Reference(NamedTuple):
    """Return the loss under test, and the same in float64 by autograd."""

    divergence: Divergence
    dense: bool
    temperature: float
    ce_weight: float
    kd_weight: float
    rows: list[int] | None

    def ours(self, logits: Tensor, tokens: Tensor, teacher: Tensor) -> TokenLoss:
        said = teacher if self.dense else top_tokens(teacher, 4)
        rows = self.rows
        select = None if rows is None else lambda nll: torch.tensor(rows)
        smoothing = smoothing_weights(0.1, logits.shape[1], "fairseq")
        how = distil(self.kd_weight, self.divergence, self.temperature)
        targets = TokenTargets(tokens, said, select)
        return token_loss(logits, targets, smoothing, self.ce_weight, how)

    def exact(self, logits: Tensor, tokens: Tensor, teacher: Tensor) -> TokenLoss:
        a, b = smoothing_weights(0.1, logits.shape[1], "fairseq")
        log_p = torch.log_softmax(logits, -1)
        nll = -log_p.gather(1, tokens[:, None]).sum()
        ce = a * nll - b * log_p.sum()
        rows = list(range(len(logits))) if self.rows is None else self.rows
        student, teacher = logits[rows] / self.temperature, teacher[rows].double()
        if not self.dense:
            outside = torch.ones_like(teacher, dtype=torch.bool)
            outside = outside.scatter(1, teacher.topk(4).indices, False)
            teacher = teacher.masked_fill(outside, -1e30)
        per_row = _exact(self.divergence, student, teacher / self.temperature)
        kd = self.temperature**2 * per_row.sum()
        total = self.ce_weight * ce + self.kd_weight * kd
        return TokenLoss(total, ce, nll, kd, torch.tensor(float(len(rows))))


def _exact(divergence: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    middle = (p + q) / 2

    def kl(left: Tensor, right: Tensor) -> Tensor:
        return (torch.xlogy(left, left) - torch.xlogy(left, right)).sum(-1)

    if divergence == "forward_kl":
        return kl(p, q)
    if divergence == "reverse_kl":
        return kl(q, p)
    if divergence == "js":
        return 0.5 * (kl(q, middle) + kl(p, middle))
    return 0.5 * (p - q).abs().sum(-1)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [None, EVERY_OTHER], ids=["all", "some"])
@pytest.mark.parametrize(("divergence", "dense"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (0.3, 0.7), (1.0, 0.0), (0.0, 0.0)])
def test_values_and_gradients_equal_autograd_in_float64(
    divergence: Divergence,
    dense: bool,
    temperature: float,
    weights: tuple[float, float],
    rows: list[int] | None,
) -> None:
    case = Reference(divergence, dense, temperature, *weights, rows)
    generator = torch.Generator().manual_seed(CASES.index((divergence, dense)))
    logits, teacher = (3 * torch.randn(13, 17, generator=generator) for _ in range(2))
    tokens = torch.randint(17, (13,), generator=generator)
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    ours, exact = case.ours(single, tokens, teacher), case.exact(double, tokens, teacher)
    for name, found, value in zip(ours._fields, ours, exact, strict=True):
        torch.testing.assert_close(
            found.double(), value.double(), rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    (5.0 * ours.total).backward()
    (5.0 * exact.total).backward()
    assert single.grad is not None and double.grad is not None
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("seed", range(5))
def test_any_shape_and_chunk(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, words = (int(torch.randint(4, 60, (), generator=generator)) for _ in range(2))
    some = torch.rand(rows, generator=generator).lt(0.4).nonzero().flatten().tolist()
    for divergence, dense in CASES:
        case = Reference(divergence, dense, 0.5 + seed / 2, 0.8, 1.2, some if seed % 2 else None)
        logits, teacher = (2 * torch.randn(rows, words, generator=generator) for _ in range(2))
        tokens = torch.randint(words, (rows,), generator=generator)
        single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
        ours, exact = (
            f(x, tokens, teacher) for f, x in ((case.ours, single), (case.exact, double))
        )
        torch.testing.assert_close(ours.total.double(), exact.total, rtol=1e-5, atol=1e-4)
        (found,) = torch.autograd.grad(ours.total, single)
        (value,) = torch.autograd.grad(exact.total, double)
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-5)


def test_a_live_teacher_cut_to_k_equals_a_cache_of_k() -> None:
    logits, teacher = torch.randn(9, 30), torch.randn(9, 30)
    tokens, cache = torch.randint(30, (9,)), top_tokens(teacher, 5)
    for divergence in PARTIAL:
        results = []
        for said in (teacher, cache):
            student = logits.clone().requires_grad_()
            how = distil(1.0, divergence, 1.7, top_k=5)
            loss = token_loss(student, TokenTargets(tokens, said), (1.0, 0.0), 1.0, how)
            results.append((loss.total, loss.kd, *torch.autograd.grad(loss.total, student)))
        torch.testing.assert_close(*results)


def test_a_top_k_beyond_the_vocabulary_keeps_everything() -> None:
    student, teacher = torch.randn(3, 6), torch.randn(3, 6)
    assert divergence_of(student, teacher, distil(top_k=50)) == pytest.approx(
        divergence_of(student, teacher, distil())
    )


@pytest.mark.usefixtures("small_chunks")
def test_no_row_at_all_has_zero_loss_and_a_gradient() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for teacher in (None, torch.randn(0, 5), TopTokens(nothing.view(0, 2), torch.zeros(0, 2))):
        for select in (None, lambda nll: nothing):
            logits = torch.randn(0, 5, requires_grad=True)
            targets = TokenTargets(nothing, teacher, select)
            loss = token_loss(logits, targets, (0.9, 0.02), 1.0, distil())
            loss.total.backward()
            assert torch.stack(loss).eq(0).all() and logits.grad is not None


def test_a_term_without_weight_cannot_spoil_the_total() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    targets = TokenTargets(torch.tensor([1]), torch.zeros(1, 3))
    loss = token_loss(logits, targets, (1.0, 0.0), 0.0, distil(weight=0.0))
    assert loss.ce.item() == math.inf and loss.total.item() == 0.0


def test_a_teacher_without_weight_cannot_spoil_the_gradient() -> None:
    gradients = []
    for teacher in (None, torch.full((2, 4), math.nan)):
        logits = torch.arange(8.0).view(2, 4).requires_grad_()
        targets = TokenTargets(torch.tensor([1, 2]), teacher)
        loss = token_loss(logits, targets, (1.0, 0.0), 1.0, distil(weight=0.0))
        gradients.append((loss.total, *torch.autograd.grad(loss.total, logits)))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("divergence", "dense"), CASES)
def test_no_divergence_is_negative(divergence: Divergence, dense: bool) -> None:
    """Divergences are not negative even if only rounding errors are left."""
    for seed in range(30):
        scores = 1000 * torch.randn(1, 50, generator=torch.Generator().manual_seed(seed))
        top = scores if dense else top_tokens(scores, 40)
        assert divergence_of(scores, top, distil(divergence=divergence, temperature=300.0)) >= 0.0


def test_a_second_backward_is_refused() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    loss = smoothed_cross_entropy(logits, torch.arange(3), 0.1, "fairseq")[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
