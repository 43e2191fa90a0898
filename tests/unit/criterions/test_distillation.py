"""Strategies, weights and invariances of the distillation criterion."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from ds_seq.config.distillation import DistillationConfig
from ds_seq.criterions import attention_term, build_criterion, hidden_term
from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.layerwise import attention_loss, hidden_loss
from ds_seq.criterions.teacher import TeacherOutput
from ds_seq.data.batch import Batch, TopTokens
from ds_seq.models.output import LayerOutputs, ModelOutput
from tests.unit.criterions.made import (
    WORDS,
    batch_of,
    chosen,
    distillation,
    logits_with,
    output_of,
    row_batch,
)

STRATEGIES = ("word_level", "word_seq_level", "batch_level", "global_level", "global_language_wise")
HARD = [0.5, 2, 1, 3, 0.1, 1.5]
KD_ONLY: dict[str, Any] = {"ce_weight": None}  # the gradient then shows which tokens are distilled


def random_case(rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Batch]:
    """Return scores of a student and a teacher, and their batch."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, WORDS, generator=generator) for _ in range(2))
    return student, teacher, row_batch(rows)


def test_logits_with_has_the_given_losses() -> None:
    loss = distillation()(output_of(logits_with(HARD)), row_batch(6))
    assert loss.parts["nll"].item() == pytest.approx(sum(HARD), rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "rate", "expected"),
    [
        ("word_level", 0.3, [0, 1, 2, 3, 4, 5]),
        ("word_seq_level", 0.3, [0, 1, 2, 3, 4, 5]),
        ("batch_level", 0.5, [1, 3, 5]),
        ("batch_level", 0.3, [1, 3]),
        ("global_level", 0.5, [1, 3, 5]),
        ("global_language_wise", 0.3, [1, 3]),
    ],
)
def test_who_is_distilled(strategy: str, rate: float, expected: list[int]) -> None:
    criterion = distillation(strategy=strategy, rate=rate, shared_queue=False, tags=[4], **KD_ONLY)
    assert chosen(criterion, HARD, row_batch(6)) == expected


def test_all_parts_are_logged_and_weights_are_what_is_in_the_total() -> None:
    student, teacher, batch = random_case()
    plain = distillation(teacher, label_smoothing=0.1, temperature=2.0)
    parts = plain(output_of(student), batch).parts
    assert set(parts) == {"ce", "nll", "kd", "kd_tokens"}
    assert parts["kd_tokens"].item() == 6 and parts["ce"] != parts["nll"]
    for ce, kd in ((1.0, 1.0), (0.3, 0.7), (None, 1.0), (0, 2.0), (0.5, None), (1.0, 0.0)):
        criterion = distillation(
            teacher, label_smoothing=0.1, temperature=2.0, ce_weight=ce, kd_weight=kd
        )
        loss = criterion(output_of(student), batch)
        torch.testing.assert_close(loss.parts, parts)
        torch.testing.assert_close(
            loss.total, (ce or 0.0) * parts["ce"] + (kd or 0.0) * parts["kd"]
        )


def test_word_level_leaves_the_cross_entropy_out_but_logs_it() -> None:
    student, teacher, batch = random_case()
    loss = distillation(teacher, strategy="word_level")(output_of(student), batch)
    torch.testing.assert_close(loss.total, loss.parts["kd"])
    assert loss.parts["ce"].item() > 0
    smooth = distillation(teacher, strategy="word_level", label_smoothing=0.2)
    torch.testing.assert_close(smooth(output_of(student), batch).total, loss.total)


def test_the_fairseq_and_the_torch_form_of_smoothing_by_name() -> None:
    student, batch = torch.tensor([[1.0, 2, 3, 4]]), batch_of([[3]])
    for form, value in (("fairseq", 0.640190), ("torch", 0.590190)):
        criterion = distillation(torch.zeros(1, 4), label_smoothing=0.1, smoothing=form)
        found = criterion(output_of(student), batch).parts["ce"].item()
        assert found == pytest.approx(value, abs=1e-5)


def test_the_teacher_is_not_differentiated_and_does_not_pull_at_its_equal() -> None:
    student, _, batch = random_case()
    student.requires_grad_()
    weights = torch.ones(WORDS, requires_grad=True)

    def teach(batch: Batch) -> TeacherOutput:
        logits = student * weights
        assert not logits.requires_grad
        return TeacherOutput(logits)

    config = DistillationConfig(teacher="run", temperature=1.5, **KD_ONLY)
    loss = build_criterion(config, teach)(output_of(student), batch)
    loss.total.backward()
    assert loss.parts["kd"].item() == pytest.approx(0.0, abs=1e-5) and weights.grad is None
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shared", [True, False])
def test_total_per_token_does_not_change_when_the_batch_is_doubled(
    strategy: str, shared: bool
) -> None:
    """The k-th largest of N values is the 2k-th or (2k-1)-th largest if all values are doubled."""
    for rows in range(1, 12):
        student, teacher, batch = random_case(rows, seed=rows)
        per_token = []
        for copies in (1, 2):
            criterion = distillation(
                teacher.repeat(copies, 1), strategy=strategy, rate=0.35, shared_queue=shared
            )
            several = batch_of(batch.labels.tolist() * copies, [4] * copies)
            loss = criterion(output_of(student.repeat(copies, 1)), several)
            per_token.append(loss.total / several.num_tokens)
        torch.testing.assert_close(*per_token)


@pytest.mark.parametrize("strategy", ["word_level", "word_seq_level", "global_level"])
def test_accumulation_changes_nothing(strategy: str) -> None:
    student, teacher, _ = random_case(9)
    results = []
    for cuts in ((0, 9), (0, 2, 2, 7, 9)):  # an empty batch among them
        said = [teacher]
        config = DistillationConfig(teacher="run", strategy=strategy, rate=0.4)  # type: ignore[arg-type]
        criterion = build_criterion(config, lambda batch, said=said: TeacherOutput(said[0]))
        for _ in range(2):  # the first update fills the queue
            total, leaf = torch.zeros(()), student.clone().requires_grad_()
            for start, end in pairwise(cuts):
                said[0] = teacher[start:end]
                loss = criterion(output_of(leaf[start:end]), row_batch(end - start))
                total = total + loss.total
            criterion.end_update(True)
        results.append((total.detach(), *torch.autograd.grad(total, leaf)))
    torch.testing.assert_close(*results)


def shares(strategy: str, rate: float, shared: bool) -> tuple[float, float]:
    """Return the distilled shares of an easy and a hard language after some updates."""
    criterion = distillation(
        strategy=strategy,
        rate=rate,
        queue_size=400,
        shared_queue=shared,
        tags=[5, 6],
        **KD_ONLY,
    )
    generator = torch.Generator().manual_seed(1)
    found = [0, 0]
    for number in range(12):
        easy = torch.rand(40, generator=generator) + 0.01
        hard = torch.rand(40, generator=generator) + 4.0
        batch = batch_of([[3] * 20] * 4, [5, 6, 5, 6])  # sentences of both languages in turn
        nll = torch.cat([easy[:20], hard[:20], easy[20:], hard[20:]])
        rows = chosen(criterion, nll, batch)
        criterion.end_update(True)
        if number >= 4:
            of_hard = sum((row // 20) % 2 for row in rows)
            found = [found[0] + len(rows) - of_hard, found[1] + of_hard]
    return found[0] / 320, found[1] / 320


@pytest.mark.parametrize("shared", [True, False])
def test_each_language_gets_its_share_where_queues_are_by_language(shared: bool) -> None:
    for rate in (0.25, 0.5):
        easy, hard = shares("global_language_wise", rate, shared)
        assert easy == pytest.approx(rate, abs=0.08) and hard == pytest.approx(rate, abs=0.08)
    easy, hard = shares("global_level", 0.5, shared)
    assert easy < 0.05 and hard > 0.9


def test_queues_survive_a_file_and_stand_still_in_validation() -> None:
    options: dict[str, Any] = {"strategy": "global_level", "rate": 0.5, "queue_size": 5, **KD_ONLY}
    criterion, other = distillation(**options), distillation(**options)
    chosen(criterion, [1, 2, 3, 4], row_batch(4))
    criterion.end_update(True)
    other.load_state(load(save(criterion.state())))
    for one in (criterion, other):
        one.train(False)
        assert chosen(one, [2.5, 3.5, 9, 9, 9, 9], row_batch(6)) == [1, 2, 3, 4, 5]
        one.train()
        assert chosen(one, [2.5, 3.5, 0.5], row_batch(3)) == [1]
        one.end_update(False)  # float16 overflowed
        assert chosen(one, [2.5, 3.5], row_batch(2)) == [1]
    assert criterion.state()["queue.all"].tolist() == pytest.approx([1, 2, 3, 4], rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES[:3])
def test_without_a_queue_there_is_nothing_to_save(strategy: str) -> None:
    criterion = distillation(strategy=strategy)
    criterion(output_of(torch.randn(3, WORDS)), row_batch(3))
    criterion.end_update(True)
    criterion.load_state({"queue.all": torch.ones(2)})
    assert criterion.state() == {}


def cached(**options: Any) -> Criterion:
    config = DistillationConfig(cache="folder", label_smoothing=0.0, **options)
    return build_criterion(config, lambda batch: TeacherOutput(None, batch.teacher))


@pytest.mark.parametrize("strategy", ["word_seq_level", "batch_level", "global_level"])
def test_a_cache_teaches_like_the_live_teacher_cut_to_its_size(strategy: str) -> None:
    student, teacher, batch = random_case()
    best = torch.log_softmax(teacher, -1).topk(3)
    known = Batch(**{**vars(batch), "teacher": TopTokens(best.indices, best.values)})
    options: dict[str, Any] = {"strategy": strategy, "temperature": 2.0}
    live = distillation(teacher, top_k=3, **options)(output_of(student), batch)
    torch.testing.assert_close(cached(**options)(output_of(student), known), live)
    whole = distillation(teacher, **options)(output_of(student), batch)
    assert whole.parts["kd"].item() != pytest.approx(live.parts["kd"].item(), rel=1e-2)


def test_a_batch_without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = cached(strategy="global_level", queue_size=9)
    empty = criterion(output_of(torch.zeros(0, WORDS, requires_grad=True)), row_batch(0))
    empty.total.backward()
    told: list[Tensor] = []
    monkeypatch.setattr(
        "ds_seq.distributed.gather_pieces", lambda pieces: told.extend(pieces) or []
    )
    criterion.end_update(True)
    assert [piece.shape for piece in told] == [(2, 0)]  # ranks count each other's batches
    with pytest.raises(AssertionError, match="no teacher output"):
        criterion(output_of(torch.zeros(2, WORDS)), row_batch(2))
    criterion.train(False)  # a validation set has no need of a cache
    loss: Loss = criterion(output_of(torch.zeros(2, WORDS)), row_batch(2))
    torch.testing.assert_close(loss.total, loss.parts["ce"])
    assert loss.parts["kd"].item() == loss.parts["kd_tokens"].item() == 0.0
    assert loss.parts.keys() == empty.parts.keys()  # which ranks add up


def layer_outputs(batch: Batch, seed: int) -> LayerOutputs:
    generator = torch.Generator().manual_seed(seed)
    (rows, source), target = batch.inputs.source.shape, batch.labels.shape[1]

    def made(*shape: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(*shape, generator=generator) for _ in range(2))

    def maps(queries: int, keys: int) -> tuple[Tensor, ...]:
        return tuple(scores.softmax(-1) for scores in made(rows, 2, queries, keys))

    return LayerOutputs(
        made(rows, source, 4),
        made(rows, target, 4),
        maps(source, source),
        maps(target, target),
        maps(target, source),
    )


@pytest.mark.parametrize("weight", [0.0, None, 0.3])
def test_layers_are_weighted_and_logged(weight: float | None) -> None:
    student, teacher, batch = random_case()
    own, other = layer_outputs(batch, 1), layer_outputs(batch, 2)
    leaf = own.encoder[0].requires_grad_()
    config = DistillationConfig.model_validate(
        {"teacher": "run", "hidden": {"weight": weight}, "attention": {"weight": 0.5}}
    )
    criterion = build_criterion(config, lambda _: TeacherOutput(teacher, layers=other))
    assert criterion.capture == "attention"
    loss = criterion(ModelOutput(student.requires_grad_(), {}, [], own), batch)
    assert config.hidden is not None and config.attention is not None
    hidden = hidden_loss(own, other, batch, hidden_term(config.hidden))
    attention = attention_loss(own, other, batch, attention_term(config.attention))
    torch.testing.assert_close(loss.parts["hidden"], hidden.detach())
    torch.testing.assert_close(loss.parts["attention"], attention.detach())
    tokens = loss.parts["ce"] + loss.parts["kd"]
    torch.testing.assert_close(loss.total, tokens + (weight or 0.0) * hidden + 0.5 * attention)
    assert not any(part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    assert (leaf.grad is not None) == bool(weight)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision_learns_from_a_teacher_for_200_updates(strategy: str) -> None:
    """A table of scores for each of nine words learns its teacher's scores in float16."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(9, 12, generator=generator)
    teacher[:, :2] = -60000.0  # padding and what is never said
    table = torch.zeros(9, 12, requires_grad=True)
    words = torch.zeros(0, dtype=torch.int64)
    config = DistillationConfig.model_validate(
        {"teacher": "run", "strategy": strategy, "queue_size": 100, "temperature": 2.0}
    )
    criterion = build_criterion(config, lambda _: TeacherOutput(teacher[words].half()), [4])
    optimizer = torch.optim.Adam([table], lr=0.05)
    distances = []
    for _ in range(200):
        words = torch.randint(9, (30,), generator=generator)
        targets = torch.multinomial(teacher[words].softmax(-1), 1, generator=generator)
        loss = criterion(output_of(table[words].half()), batch_of([targets[:, 0].tolist()], [4]))
        optimizer.zero_grad()
        (loss.total * 2.0**10 / 30).backward()
        assert table.grad is not None and table.grad.isfinite().all() and loss.total.isfinite()
        table.grad /= 2.0**10
        optimizer.step()
        criterion.end_update(True)
        distances.append((table.softmax(-1) - teacher.softmax(-1)).abs().sum().item())
    assert distances[-1] < 0.35 * distances[0]
