"""The loss of tokens on a GPU against the plain one in float64, and what it takes of memory."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from ds_seq.criterions import cross_entropy as module
from ds_seq.criterions.cross_entropy import cross_entropy, smoothed_cross_entropy
from ds_seq.criterions.token_loss import TokenTargets, token_loss
from ds_seq.data.batch import TopTokens
from ds_seq.names import Divergence, Smoothing
from tests.unit.criterions.made import distil

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of each element
WORDS = 1000


def _choose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_SEQ_TRITON", "0" if name == "plain" else "1")
    working = module.loss_kernel(torch.zeros(1, 8, device="cuda"))
    assert (working is not None) is (name == "kernel")


@pytest.fixture(params=["kernel", "plain"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton kernel or plain torch."""
    _choose(request.param, monkeypatch)


def _made(dtype: torch.dtype, rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    logits = 3 * torch.randn(rows, WORDS, device="cuda", generator=generator)
    tokens = torch.randint(WORDS, (rows,), device="cuda", generator=generator)
    return logits.to(dtype), tokens


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", get_args(Smoothing))
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("rows_at_a_time", [7, 300])
def test_cross_entropy_equals_the_plain_one_in_float64(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    form: Smoothing,
    epsilon: float,
    rows_at_a_time: int,
) -> None:
    monkeypatch.setattr(module, "_GPU_ELEMENTS", rows_at_a_time * WORDS)
    logits, tokens = _made(dtype)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, nll = smoothed_cross_entropy(ours, tokens, epsilon, form)
    expected = cross_entropy(exact, tokens, epsilon, form)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    plain = cross_entropy(logits.double(), tokens, 0.0, form)
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=0)
    factor = 2.0**17 / len(tokens)  # as with a loss scale, and beyond float16 in the sum
    (loss * factor).backward()
    (expected * factor).backward()
    assert ours.grad is not None and exact.grad is not None
    assert ours.grad.dtype == dtype
    rounding = ROUNDING[dtype]
    # near probabilities of 1 an element has the rounding of what was subtracted
    torch.testing.assert_close(
        ours.grad.double() / factor, exact.grad / factor, rtol=rounding, atol=1e-6
    )


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.4, 0.6)])
def test_with_a_teacher_a_gpu_gives_what_a_cpu_gives(
    dtype: torch.dtype, divergence: Divergence, selected: bool, weights: tuple[float, float]
) -> None:
    logits, tokens = _made(dtype, 40)
    scores = logits.roll(1, 0)
    results = []
    for device in ("cuda", "cpu"):
        student = logits.to(device, copy=True).requires_grad_()
        select = (lambda nll: torch.arange(0, 40, 3, device=nll.device)) if selected else None
        targets = TokenTargets(tokens.to(device), scores.to(device), select)
        how = distil(weights[1], divergence)
        loss = token_loss(student, targets, (0.9, 1e-4), weights[0], how)
        loss.total.backward()
        assert student.grad is not None
        results.append((torch.stack(loss).detach().cpu(), student.grad.float().cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    # plain torch rounds the gradient of a selected row twice
    atol = 1e-4 if selected else 1e-5
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2 * ROUNDING[dtype], atol=atol)


KNOWN = [
    (divergence, known)
    for divergence in get_args(Divergence)
    for known in ("all", "cached", "live")
    if divergence != "reverse_kl" or known == "all"  # it would be infinite
]


@pytest.mark.parametrize(("divergence", "known"), KNOWN)
def test_the_kernel_gives_what_plain_torch_gives(
    monkeypatch: pytest.MonkeyPatch, divergence: Divergence, known: str
) -> None:
    """At a temperature; for scores of a teacher some of which are minus infinity, too."""
    logits, tokens = _made(torch.bfloat16, 50)
    scores = logits.roll(1, 0).float() + 5.0
    if divergence != "reverse_kl":  # which would be infinite
        scores[::7, 3] = -torch.inf
    teacher: torch.Tensor | TopTokens = scores
    if known == "cached":
        best = scores.log_softmax(1).topk(5)
        teacher = TopTokens(best.indices, best.values)
    how = distil(0.6, divergence, 2.0, 5 if known == "live" else None)
    results = []
    for choice in ("plain", "kernel"):
        _choose(choice, monkeypatch)
        student = logits.clone().requires_grad_()
        loss = token_loss(student, TokenTargets(tokens, teacher), (0.9, 1e-4), 0.4, how)
        loss.total.backward()
        assert student.grad is not None
        results.append((torch.stack(loss).detach(), student.grad.float()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=2e-2, atol=2e-6)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_not_hidden(dtype: torch.dtype, value: float) -> None:
    """Neither in the loss nor in the gradient: an fp16 overflow has to be seen."""
    logits, tokens = _made(dtype, 6)
    logits[2, 3] = value
    logits.requires_grad_()
    loss, _ = smoothed_cross_entropy(logits, tokens, 0.1, "fairseq")
    loss.backward()
    assert logits.grad is not None
    assert not loss.isfinite() and not logits.grad[2].isfinite().any()
    assert logits.grad[:2].isfinite().all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_a_teacher_that_is_not_finite_is_not_hidden(
    dtype: torch.dtype, divergence: Divergence
) -> None:
    logits, tokens = _made(dtype, 6)
    scores = logits.roll(1, 0)
    scores[2, 3] = math.nan
    loss = token_loss(
        logits, TokenTargets(tokens, scores), (1.0, 0.0), 0.5, distil(0.5, divergence)
    )
    assert loss.kd.isnan() and loss.total.isnan() and loss.ce.isfinite()


@pytest.mark.usefixtures("implementation")
def test_memory_is_the_gradient_and_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GPU_ELEMENTS", 100 * WORDS)
    logits, tokens = _made(torch.bfloat16, 20_000)
    logits.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    smoothed_cross_entropy(logits, tokens, 0.1, "fairseq")[0].backward()
    gradient = 2 * logits.numel()
    assert torch.cuda.max_memory_allocated() - before < gradient + 100 * WORDS * 4 * 8
