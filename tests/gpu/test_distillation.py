"""Distillation on a GPU: the same losses, gradients and selected tokens as on a CPU."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from ds_seq.config.distillation import DistillationConfig
from ds_seq.criterions import build_criterion
from ds_seq.criterions.teacher import TeacherOutput
from ds_seq.data.batch import Batch, TopTokens
from ds_seq.models.build import build_seq2seq
from ds_seq.models.output import ModelOutput
from ds_seq.names import Divergence, Strategy
from tests.distributed import spine

pytestmark = pytest.mark.gpu
TAGS = (4, 5, 6)


def results_of(
    device: str, dtype: torch.dtype, top_k: int | None, **options: object
) -> tuple[dict[str, float], torch.Tensor]:
    """Parts of two batches and the gradient of the second one's logits."""
    config = DistillationConfig.model_validate({"teacher": "run", "queue_size": 50, **options})
    generator = torch.Generator().manual_seed(1)
    parts, gradient = {}, torch.zeros(0)
    answers: list[TeacherOutput] = []
    criterion = build_criterion(config, lambda batch: answers[-1], TAGS)
    for batch in spine.batches(0)[:2]:
        shape = batch.num_tokens, spine.VOCAB
        logits, scores = (3 * torch.randn(shape, generator=generator) for _ in range(2))
        best = scores.log_softmax(1).topk(top_k or 1)
        top = TopTokens(best.indices.to(device), best.values.to(device))
        own = scores.to(device, dtype) if top_k is None else None
        answers.append(TeacherOutput(own, None if top_k is None else top))
        student = logits.to(device, dtype, copy=True).requires_grad_()
        loss = criterion(ModelOutput(student, {}, []), batch.to(device))
        loss.total.backward()
        criterion.end_update(True)
        assert student.grad is not None
        parts = {name: float(value) for name, value in loss.parts.items()}
        gradient = student.grad.float().cpu()
    return parts, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("top_k", [None, 5])
def test_losses_are_those_of_a_cpu(
    dtype: torch.dtype, divergence: Divergence, top_k: int | None
) -> None:
    if top_k is not None and divergence == "reverse_kl":
        divergence = "forward_kl"  # the other one is refused
    options = {"divergence": divergence, "temperature": 2.0}
    ours, theirs = (results_of(device, dtype, top_k, **options) for device in ("cuda", "cpu"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("shared", [True, False])
def test_the_same_tokens_are_selected(strategy: Strategy, shared: bool) -> None:
    options = {"strategy": strategy, "rate": 0.4, "shared_queue": shared}
    ours, theirs = (
        results_of(device, torch.float32, None, **options) for device in ("cuda", "cpu")
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-5)


def test_hidden_states_and_maps_in_bf16() -> None:
    teacher, student = (
        build_seq2seq(spine.model_config(), spine.VOCAB, 1, 0, seed=1).cuda().bfloat16()
        for _ in range(2)
    )
    config = DistillationConfig.model_validate(
        {"teacher": "run", "hidden": {"normalize": True}, "attention": {}}
    )

    def teach(batch: Batch) -> TeacherOutput:
        output = teacher(batch.inputs, "attention")
        return TeacherOutput(output.logits, layers=output.layers)

    criterion = build_criterion(config, teach)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    batch = spine.batches(0)[0].to("cuda")
    totals = []
    for _ in range(20):
        loss = criterion(student(batch.inputs, "attention"), batch)
        totals.append(loss.total.item())
        optimizer.zero_grad()
        (loss.total / batch.num_tokens).backward()
        optimizer.step()
    assert all(total == total for total in totals) and totals[-1] < totals[0]
