"""Validation measures and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from ds_seq.criterions.base import Criterion, Loss
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.reports.metrics import FileLosses, metric_lines_by_file
from ds_seq.scores.metric import Measured, Metric
from ds_seq.training.validation import BestBy, Validator, choose_metrics
from tests.unit.training.fakes import make_batch, make_stats

TOKENS = (4, 2, 0)


class Engine(SimpleNamespace):
    """Looks at the mode that it runs in; averages no weights."""

    ema, forward_is_collective = None, False

    def __call__(self, batch: Any) -> ModelOutput:
        assert not self.module.training and not torch.is_grad_enabled()
        return ModelOutput(self.module(torch.ones(batch.num_tokens, 1)), {}, [])


class ThreeNats(Criterion):
    """Return three nats per token if called in validation."""

    def __call__(self, output: ModelOutput, batch: Any) -> Loss:
        assert not self.training
        tokens = output.logits.new_tensor(3.0 * batch.num_tokens)
        return Loss(tokens + 8.0, {"nll": tokens}, tokens)  # 8 for the routers


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
    criterion.train(training)
    figures = validator()
    assert module.training is criterion.training is training
    # the loss of the target tokens alone: models with and without experts compare by it
    assert figures["nll"] == figures["loss"] == pytest.approx(3.0)
    assert (figures["tokens"], figures["bleu"], figures["most"]) == (6, 12.0, 7)


class NatsOfTheFirstToken(ThreeNats):
    def __call__(self, output: ModelOutput, batch: Any) -> Loss:
        tokens = output.logits.new_tensor(float(batch.indices[:1].sum()) * batch.num_tokens)
        return Loss(tokens, {"nll": tokens}, tokens)


def test_each_of_several_files_has_its_own_loss() -> None:
    """Of files with 2, 0 and 5 examples; an empty batch, as on a rank without work, is of none."""
    firsts, counts = (0, 1, 2, 6, 0), (4, 2, 1, 3, 0)
    made = [
        replace(make_batch(count), indices=torch.tensor([first][: min(count, 1)]))
        for first, count in zip(firsts, counts, strict=True)
    ]
    engine: Any = Engine(module=nn.Linear(1, 1), device=torch.device("cpu"))
    criterion = NatsOfTheFirstToken()
    for files in ({"a": 2, "none": 0, "b": 5}, {"a": 7}):
        figures = Validator(engine, criterion, lambda: made, None, None, files)()
        assert figures["loss"] == pytest.approx((2 + 2 + 18) / 10)
        of_files = {key: value for key, value in figures.items() if "/" in key}
        assert of_files == ({} if len(files) == 1 else {"loss/a": 2 / 6, "loss/b": 20 / 4})
    lines = metric_lines_by_file({"loss/a": 1.0, "bleu/a": 2.0, "bleu": 3.0, "bleu_signature": ""})
    assert lines == ["valid a | loss 1.00 | bleu 2.00"]


def test_each_of_several_files_has_its_own_load_of_experts() -> None:
    """An empty batch counts for no file, whatever its statistics are."""
    losses = FileLosses({"a": 2, "none": 0, "b": 5})
    for first, count, load in ((0, 4, [3.0, 1.0]), (3, 2, [0.0, 2.0]), (4, 1, [2.0, 0.0])):
        batch = replace(make_batch(count), indices=torch.tensor([first]))
        losses.add(torch.tensor(1.0), [make_stats(load), make_stats(load[::-1])], batch)
    empty = replace(make_batch(0), indices=torch.tensor([], dtype=torch.long))
    losses.add(torch.tensor(0.0), [make_stats([9.0, 9.0])] * 2, empty)
    loads = {key: value for key, value in losses.reduce().items() if "moe" in key}
    assert loads == {
        "moe/layer0/load/a": [0.75, 0.25],
        "moe/layer1/load/a": [0.25, 0.75],
        "moe/layer0/load/b": [0.5, 0.5],
        "moe/layer1/load/b": [0.5, 0.5],
    }


def test_the_sanity_check_takes_a_few_batches_and_sentences() -> None:
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


def test_a_metric_must_not_hide_another_figure() -> None:
    validator, *_ = _setting(lambda model, most: {"ppl": 1.0, "ppl_signature": ""})
    with pytest.raises(UserError, match=r"validation\.metrics: 'ppl' is the name of another fig"):
        validator()


def _task(*names: str) -> Any:
    """A task whose metrics have those names; those with a capital letter want to be low."""
    by_name = {
        name: Metric(name, name.islower(), lambda texts, others: Measured(0.0)) for name in names
    }
    return SimpleNamespace(metric=lambda name: by_name[name.split(":")[-1]])


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ("loss", BestBy("loss", higher_is_better=False)),
        ("up", BestBy("up", higher_is_better=True)),
        ("my_lab:Down", BestBy("Down", higher_is_better=False)),
    ],
)
def test_the_direction_is_that_of_the_metric(best: str, expected: BestBy) -> None:
    metrics, found = choose_metrics(_task("up", "Down"), ["up", "my_lab:Down"], best)
    assert [metric.name for metric in metrics] == ["up", "Down"]
    assert found == expected


def test_without_metrics_none_is_built() -> None:
    metrics, best = choose_metrics(_task(), [], "bleu")
    assert metrics == [] and best.figure == "bleu"


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"validation\.metrics: two of them .* 'up'"):
        choose_metrics(_task("up"), ["up", "my_lab:up"], "up")


@pytest.mark.parametrize("higher", [True, False])
def test_equal_is_no_improvement(higher: bool) -> None:
    best = BestBy("x", higher)
    assert best.improves(2.0, 1.0) is higher and best.improves(1.0, 2.0) is not higher
    assert not best.improves(1.0, 1.0)
