"""Batches, outputs and criterions for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ds_seq.config.distillation import DistillationConfig
from ds_seq.criterions import build_criterion
from ds_seq.criterions.distillation import Distillation
from ds_seq.criterions.teacher import TeacherOutput
from ds_seq.criterions.token_loss import Distil
from ds_seq.data.batch import Batch, Seq2SeqInputs, TopTokens
from ds_seq.models.output import ModelOutput
from ds_seq.names import Divergence
from tests import batches

PAD = 1
WORDS = 7  # vocabulary of `logits_with`
DIVERGENCES: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "js", "tv")
PARTIAL: tuple[Divergence, ...] = ("forward_kl", "js", "tv")  # those that a top-k teacher can have
CASES = [(d, dense) for dense in (True, False) for d in (DIVERGENCES if dense else PARTIAL)]


def batch_of(targets: list[list[int]], tags: Sequence[int] | None = None) -> Batch[Seq2SeqInputs]:
    """Return a batch of these targets; sources start with `tags`."""
    labels = torch.tensor(targets)
    source = labels if tags is None else torch.tensor([[tag, 5, 2] for tag in tags])
    return batches.batch_of(source, labels)


def row_batch(count: int, tag: int = 4) -> Batch[Seq2SeqInputs]:
    """Return one sentence of `count` tokens, all of them word 3."""
    return batch_of([[3] * max(count, 1)] if count else [[PAD]], [tag])


def output_of(logits: Tensor, **router_losses: float) -> ModelOutput:
    return ModelOutput(logits, {k: torch.tensor(v) for k, v in router_losses.items()}, [])


def logits_with(nll: Sequence[float] | Tensor, word: int = 3) -> Tensor:
    """Return scores (N, WORDS) for which `word` has these negative log-likelihoods."""
    values = torch.as_tensor(nll, dtype=torch.float64)
    others = ((values.exp() - 1) / (WORDS - 1)).log()
    logits = others[:, None].repeat(1, WORDS)
    logits[:, word] = 0.0
    return logits.float()


def distillation(
    teacher: Tensor | TopTokens | None = None, tags: Sequence[int] = (), **options: Any
) -> Distillation:
    """Return a criterion with a constant teacher; None gives equal scores for any batch."""
    config = DistillationConfig(teacher="run", **{"label_smoothing": 0.0, **options})

    def teach(batch: Batch) -> TeacherOutput:
        if isinstance(teacher, TopTokens):
            return TeacherOutput(None, teacher)
        scores = torch.zeros(batch.num_tokens, WORDS) if teacher is None else teacher
        return TeacherOutput(scores)

    criterion = build_criterion(config, teach, tags)
    assert isinstance(criterion, Distillation)
    return criterion


def distil(
    weight: float = 1.0,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Distil:
    """Return the simplest comparison with a teacher."""
    return Distil(weight, divergence, temperature, top_k)


def top_tokens(teacher: Tensor, k: int) -> TopTokens:
    """Return the part of a teacher's scores (N, V) that a cache stores."""
    best = torch.log_softmax(teacher.float(), -1).topk(k)
    return TopTokens(best.indices, best.values)


def chosen(criterion: Distillation, nll: Sequence[float] | Tensor, batch: Batch) -> list[int]:
    """Return the indices of distilled tokens: those with a gradient of the divergence."""
    logits = logits_with(nll).requires_grad_()
    loss = criterion(output_of(logits), batch)
    loss.total.backward()
    assert logits.grad is not None
    rows: list[int] = logits.grad.abs().amax(1).gt(1e-6).nonzero().flatten().tolist()
    assert loss.parts["kd_tokens"].item() == len(rows)
    return rows


def profiled(function: Callable[[], object]) -> Any:
    """Run a function under torch's profiler, which records all operations and allocations."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True
    ) as profiler:
        function()
    return profiler


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the peak memory of tensors created by a function."""
    events = profiled(function).profiler.kineto_results.events()
    sizes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = most = 0
    for _, size in sorted(sizes, key=lambda pair: pair[0]):
        now += size
        most = max(most, now)
    return most


def softmax_elements(function: Callable[[], object]) -> int:
    """Return the number of elements passed through a softmax."""
    events = profiled(function).events()
    shapes = [e.input_shapes[0] for e in events if e.name == "aten::_softmax"]
    return sum(rows * columns for rows, columns in shapes)
