"""Cross entropy over batches, router losses in addition to a base, and building criterions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ds_seq.config.base import ExternalConfig
from ds_seq.config.criterion import CrossEntropyConfig, ModelAndBaseConfig
from ds_seq.config.distillation import DistillationConfig
from ds_seq.criterions import build_criterion
from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.distillation import Distillation
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.criterions.teacher import TeacherOutput
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.names import ROUTER_LOSSES
from ds_seq.plugins import trusting
from tests.unit.criterions.made import PAD, batch_of, distillation, output_of, row_batch


def test_padding_does_not_count() -> None:
    criterion = CrossEntropy(0.1, "fairseq")
    logits = torch.randn(3, 6)
    padded, plain = batch_of([[4, 5, PAD, PAD], [3, PAD, PAD, PAD]]), batch_of([[4, 5, 3]])
    torch.testing.assert_close(
        criterion(output_of(logits), padded).total, criterion(output_of(logits), plain).total
    )


def combined(weights: dict[str, float | None], logits: Tensor, batch: Batch) -> Loss:
    criterion = ModelAndBase(CrossEntropy(0.1, "fairseq"), weights, ROUTER_LOSSES)
    return criterion(output_of(logits, load_balance=1.5, router_z=0.25), batch)


def test_router_losses_are_weighted_by_name_and_logged_unweighted() -> None:
    logits, batch = torch.randn(3, 6), batch_of([[4, 5, 3]])
    base = CrossEntropy(0.1, "fairseq")(output_of(logits), batch).total
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
        ModelAndBase(CrossEntropy(0.1, "fairseq"), {"gate": 1.0}, ROUTER_LOSSES)


def test_distillation_combines_with_router_losses() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(3, 7), torch.randn(3, 7)
    batch = row_batch(3)
    base = distillation(teacher, kd_weight=0.25, ce_weight=2.0)
    loss = ModelAndBase(base, {"base": 0.5, "load_balance": 0.01}, ROUTER_LOSSES)(
        output_of(logits, load_balance=1.5), batch
    )
    parts = loss.parts
    expected = 0.5 * (2 * parts["ce"] + 0.25 * parts["kd"]) + 3 * 0.01 * 1.5
    torch.testing.assert_close(loss.total, expected)
    assert set(parts) == {"ce", "nll", "kd", "kd_tokens", "load_balance"}


def test_state_and_requests_of_a_base_are_those_of_the_whole() -> None:
    options: dict[str, Any] = {"strategy": "global_level", "queue_size": 4, "rate": 0.5}
    base = distillation(hidden={}, **options)
    whole = ModelAndBase(base, {}, ROUTER_LOSSES)
    assert (base.capture, whole.capture) == ("hidden", "hidden")
    assert ModelAndBase(distillation(attention={}), {}, ROUTER_LOSSES).capture == "attention"
    assert ModelAndBase(CrossEntropy(0.1, "torch"), {}, ROUTER_LOSSES).capture == "none"

    whole = ModelAndBase(distillation(**options), {}, ROUTER_LOSSES)
    outputs = output_of(torch.randn(3, 7))
    for training, applied, count in ((True, True, 3), (False, True, 3), (True, False, 3)):
        whole.train(training)
        assert whole.training == training
        whole(outputs, row_batch(3))
        whole.end_update(applied)
        assert len(whole.state()["queue.all"]) == count
    other = ModelAndBase(distillation(**options), {}, ROUTER_LOSSES)
    other.load_state(whole.state())
    torch.testing.assert_close(other.state(), whole.state())


class Doubled:
    """A plug-in may be a function."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        return Loss(self.factor * output.logits.sum(), {})


class Remembering(Criterion):
    """A plug-in may be a criterion."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        self.seen += 1
        return Loss(output.logits.sum(), {})


def test_a_plug_in_is_a_criterion_or_becomes_one() -> None:
    doubled = ExternalConfig(name=f"{__name__}:Doubled", options={"factor": 2.0})
    remembering = ExternalConfig(name=f"{__name__}:Remembering", options={})
    with trusting([doubled.name, remembering.name]):
        plain, own = build_criterion(doubled, None), build_criterion(remembering, None)
    assert isinstance(plain, Criterion) and plain.capture == "none" and plain.state() == {}
    plain.train(False)
    plain.end_update(True)
    plain.load_state({})
    assert plain(output_of(torch.ones(2, 3)), row_batch(2)).total.item() == 12.0
    assert type(own).__name__ == "Remembering"


def test_a_config_becomes_its_criterion() -> None:
    def teach(batch: Batch) -> TeacherOutput:
        return TeacherOutput(torch.zeros(batch.num_tokens, 7))

    config = DistillationConfig(teacher="run", strategy="global_language_wise")
    assert isinstance(build_criterion(CrossEntropyConfig(), None), CrossEntropy)
    whole = build_criterion(ModelAndBaseConfig(base=config), teach, [5, 4])
    assert isinstance(whole, ModelAndBase) and isinstance(whole.base, Distillation)
    assert set(whole.state()) == {"queue.4", "queue.5", "queue.all"}
