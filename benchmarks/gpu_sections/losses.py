"""gpu.py: label-smoothed cross entropy, alone and with distillation, forward and backward.

Shapes: N target tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.criterions import cross_entropy as module
from ds_seq.criterions.cross_entropy import smoothed_cross_entropy, smoothing_weights
from ds_seq.criterions.token_loss import Distil, TokenTargets, token_loss
from ds_seq.data.batch import TopTokens

from .bench import DTYPES, Bench, device_name, peak_of
from .measure import Call, clear, median_ms, peak_gb, wall_ms
from .training import SMOOTHING

_TOP = 8  # tokens per position in a teacher's cache


def loss(bench: Bench) -> None:
    """Time our losses and torch's in both half precisions, and the effect of slice sizes."""
    rows, vocab, device = bench.sizes.middle, bench.sizes.vocab, bench.device
    targets = torch.randint(4, vocab, (rows,), device=device)
    for precision in ("bf16", "fp16"):
        dtype = DTYPES[precision]
        logits = torch.randn(rows, vocab, device=device, dtype=dtype, requires_grad=True)
        teacher = torch.randn(rows, vocab, device=device, dtype=dtype)
        for name, step in _steps(logits, targets, teacher).items():
            bench.figures[f"{precision}/{name}"] = _times(bench, step)
            if name.startswith("ours") and device.type == "cuda":
                with _without_kernel():
                    bench.figures[f"{precision}/{name}, without Triton"] = _times(bench, step)
        del teacher
        if precision == "bf16" and not bench.sizes.tiny:
            with _without_kernel():
                _sizes_of_slices(bench, logits, targets)
            if device.type == "cuda":
                bench.figures["bf16/compiled"] = _compiled(logits, targets)


@contextmanager
def _without_kernel() -> Iterator[None]:
    before = os.environ.get("DS_SEQ_TRITON", "1")
    os.environ["DS_SEQ_TRITON"] = "0"
    try:
        yield
    finally:
        os.environ["DS_SEQ_TRITON"] = before


def _steps(logits: Tensor, targets: Tensor, teacher: Tensor) -> dict[str, Call]:
    """Return forward and backward of each loss, by name."""
    best = TopTokens(*_top_tokens(teacher))
    forward_kl = Distil(weight=1.0, divergence="forward_kl", temperature=1.0, top_k=None)

    def torchs(of: Callable[[Tensor], Tensor]) -> Call:
        def step() -> None:
            inputs, kind = of(logits), {"reduction": "sum", "label_smoothing": SMOOTHING}
            F.cross_entropy(inputs, targets, **kind).backward()  # type: ignore[arg-type]
            logits.grad = None

        return step

    return {
        "ours ce": _ours(logits, targets),
        "ours ce + forward KL of all": _ours(logits, targets, teacher, forward_kl),
        "ours ce + forward KL at T=2": _ours(
            logits, targets, teacher, replace(forward_kl, temperature=2.0)
        ),
        "ours ce + JS": _ours(logits, targets, teacher, replace(forward_kl, divergence="js")),
        f"ours ce + top {_TOP}": _ours(logits, targets, best, forward_kl),
        "torch cross_entropy": torchs(lambda scores: scores),
        "torch cross_entropy of float()": torchs(lambda scores: scores.float()),
    }


def _top_tokens(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids and log-probabilities, (N, _TOP), computed in slices to save memory."""
    parts = [rows.float().log_softmax(1).topk(_TOP) for rows in teacher.split(2048)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _ours(
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | TopTokens | None = None,
    distil: Distil | None = None,
) -> Call:
    weights = smoothing_weights(SMOOTHING, logits.shape[1], "fairseq")

    def step() -> None:
        if distil is None:
            total, _ = smoothed_cross_entropy(logits, targets, SMOOTHING, "fairseq")
        else:
            total = token_loss(logits, TokenTargets(targets, teacher), weights, 1.0, distil).total
        total.backward()
        logits.grad = None

    return step


def _times(bench: Bench, step: Call) -> dict[str, Any]:
    clear()
    before = peak_gb()
    ms = median_ms(step, 2, 5)
    entry: dict[str, Any] = {"ms": round(ms, 3), "extra_gb": round(peak_gb() - before, 2)}
    peak = peak_of(device_name(bench.device))
    if peak is not None:  # memory traffic possible in this time
        traffic = ms / 1e3 * peak.bandwidth
        per_logit = traffic / (bench.sizes.middle * bench.sizes.vocab)
        entry["bytes_per_logit"] = round(per_logit, 1)
    return entry


def _sizes_of_slices(bench: Bench, logits: Tensor, targets: Tensor) -> None:
    """Time cross entropy with more or fewer logits per slice."""
    usual = module._GPU_ELEMENTS
    try:
        for power in (20, 22, 24, 26, 28):
            module._GPU_ELEMENTS = 1 << power
            ms = round(median_ms(_ours(logits, targets), 2, 5), 3)
            bench.figures[f"bf16/ours ce, 2^{power} at a time"] = {"ms": ms}
    finally:
        module._GPU_ELEMENTS = usual


def _compiled(logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """Time the same function compiled by inductor, as a bound for a fused kernel."""
    a, b = smoothing_weights(SMOOTHING, logits.shape[1], "fairseq")

    def smoothed(scores: Tensor, labels: Tensor) -> Tensor:
        scores = scores.float()
        total = scores.logsumexp(1)
        nll = total - scores.gather(1, labels[:, None]).squeeze(1)
        return (a * nll + b * (total * scores.shape[1] - scores.sum(1))).sum()

    function = torch.compile(smoothed)

    def step() -> None:
        function(logits, targets).backward()
        logits.grad = None

    try:
        seconds = wall_ms(step) / 1e3
        return {"ms": round(median_ms(step, 2, 5), 3), "compile_s": round(seconds, 1)}
    except Exception as problem:  # the machine may lack a compiler
        return {"problem": repr(problem)[:200]}
