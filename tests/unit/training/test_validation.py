"""Validation measures and leaves no trace."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.models.output import ModelOutput
from ds_seq.training.validation import Validator
from tests.unit.training.fakes import make_batch

TOKENS = (4, 2, 0)


class Engine(SimpleNamespace):
    """Looks at the mode that it runs in."""

    def __call__(self, batch: Any) -> ModelOutput:
        assert not self.module.training and not torch.is_grad_enabled()
        return ModelOutput(self.module(torch.ones(batch.num_tokens, 1)), {}, [])


class ThreeNats(Criterion):
    """Three nats a token, if it is told that this is a validation."""

    def __call__(self, output: ModelOutput, batch: Any) -> Loss:
        assert not self.training
        total = output.logits.new_tensor(3.0 * batch.num_tokens)
        return Loss(total, {"nll": total})


class Setting(NamedTuple):
    validator: Validator
    module: nn.Module
    criterion: Criterion


def _setting(score: Any, max_sentences: int | None = None) -> Setting:
    module, criterion = nn.Linear(1, 1), ThreeNats()
    engine: Any = Engine(module=module, device=torch.device("cpu"))
    batches = partial(map, make_batch, TOKENS)
    validator = Validator(engine, criterion, batches, score, max_sentences)
    return Setting(validator, module, criterion)


@pytest.mark.parametrize("training", [True, False])
def test_means_and_scores_and_the_mode_is_put_back(training: bool) -> None:
    validator, module, criterion = _setting(lambda model, most: {"bleu": 12.0, "most": most}, 7)
    module.train(training)
    figures = validator()
    assert module.training is criterion.training is training
    assert figures["nll"] == figures["loss"] == pytest.approx(3.0)
    assert (figures["tokens"], figures["bleu"], figures["most"]) == (6, 12.0, 7)


def test_a_rehearsal_takes_a_few_batches_and_sentences() -> None:
    validator, *_ = _setting(lambda model, most: {"most": most})
    figures = validator(max_batches=1)
    assert (figures["tokens"], figures["most"]) == (4, 2)


def test_the_mode_is_put_back_after_a_failure() -> None:
    def fail(model: nn.Module, most: int | None) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    validator, module, criterion = _setting(fail)
    with pytest.raises(RuntimeError):
        validator()
    assert module.training and criterion.training


def test_without_a_score_there_is_the_loss_alone() -> None:
    validator, *_ = _setting(None)
    assert set(validator()) == {"tokens", "sentences", "loss", "nll", "ppl"}
