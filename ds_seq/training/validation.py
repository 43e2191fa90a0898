"""Validation: loss per token over a split, and the task's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from ds_seq import activity, distributed
from ds_seq.criterions.base import Criterion, Current
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.names import LOSS, ScoreAverage
from ds_seq.reports.metrics import FileLosses, LossSums, metric_names
from ds_seq.scores.metric import Metric
from ds_seq.search.beam_search import BeamSearch
from ds_seq.tasks.base import Task
from ds_seq.tasks.held_out import averaged
from ds_seq.training.engine import Engine

Score = Callable[[nn.Module, int | None], dict[str, Any]]
"""(model, maximum number of sentences or None) -> result of `Task.evaluate`; a collective."""


class BestBy(NamedTuple):
    """The figure by which checkpoints are compared.

    Attributes:
        figure: its name.
        higher_is_better: its direction.
    """

    figure: str
    higher_is_better: bool

    def improves(self, score: float, on: float) -> bool:
        """Return whether `score` is better than `on`."""
        return score > on if self.higher_is_better else score < on


def choose_metrics(task: Task, names: Sequence[str], best: str) -> tuple[list[Metric], BestBy]:
    """Return the metrics that a config names, and how to compare checkpoints.

    Args:
        task: the task, which resolves the names.
        names: names of the metrics.
        best: `loss`, or one of `names`.

    Raises:
        UserError: a metric does not exist, needs a missing package, or has the name of another.
    """
    metrics = {name: task.metric(name) for name in names}
    labels = [metric.name for metric in metrics.values()]
    if duplicates := [name for name in labels if labels.count(name) > 1]:
        raise UserError(f"validation.metrics: two of them are named {duplicates[0]!r}")
    chosen = metrics.get(best)
    if chosen is None:  # `loss`, or a run without validation
        return list(metrics.values()), BestBy(best, higher_is_better=False)
    return list(metrics.values()), BestBy(chosen.name, chosen.higher_is_better)


def score_by(
    task: Task,
    metrics: Sequence[Metric],
    search: BeamSearch,
    limits: BatchLimits,
    device: torch.device,
    share: Share,
    average: ScoreAverage,
) -> Score | None:
    """Return a `Score` that calls `Task.evaluate` on the validation split; None without metrics."""
    if not metrics:
        return None

    def score(model: nn.Module, max_sentences: int | None) -> dict[str, Any]:
        figures = task.evaluate(
            model, "valid", search, limits, device, share, metrics, max_sentences
        )
        return averaged(figures, metrics, average)

    return score


class Validator:
    """Evaluates a model on a held-out split without changing it.

    Args:
        engine: the engine that runs the forwards.
        criterion: the loss.
        batches: returns this rank's batches of the split, the same number on every rank.
        score: translates and scores; `None` computes the loss only.
        max_sentences: maximum number of sentences to translate; `None` for all.
        files: names of the files of the split, and their numbers of examples. With several, each
            batch has examples of one file only, and the loss of each is reported.
    """

    def __init__(
        self,
        engine: Engine,
        criterion: Criterion,
        batches: Callable[[], Iterable[Batch]],
        score: Score | None,
        max_sentences: int | None,
        files: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._engine, self._criterion = engine, criterion
        self._batches, self._score, self._max_sentences = batches, score, max_sentences
        self._files = files if len(files) > 1 else {}

    @torch.no_grad()
    def __call__(self, max_batches: int | None = None) -> dict[str, Any]:
        """Validate; a collective.

        Args:
            max_batches: use at most this many batches and translate only a few sentences, to find
                mistakes before training starts.

        Returns:
            Per-token means of the loss parts, `loss` (that of the target tokens), `ppl`, with
            several files what `FileLosses` has of each, routing figures, and the result of `score`.
            If the engine averages its weights, all of that is of the average; `raw_loss`, `raw_ppl`
            and a `raw_<name>` for each metric are of the weights themselves, if that is wanted.
        """
        ema = self._engine.ema
        if ema is None:
            return self._figures(max_batches)
        with ema.as_weights():
            figures = self._figures(max_batches)
        if ema.validates_raw:
            raw = self._figures(max_batches)
            chosen = [name for name in (LOSS, "ppl", *metric_names(raw)) if name in raw]
            figures |= {f"raw_{name}": raw[name] for name in chosen}
        return figures

    def _figures(self, max_batches: int | None) -> dict[str, Any]:
        module = self._engine.module
        was_training, criterion_was_training = module.training, self._criterion.training
        module.eval()
        self._criterion.train(False)
        try:
            figures = self._loss(max_batches)
            if self._score is not None:
                few = None if max_batches is None else 2 * max_batches
                scores = self._score(module, few or self._max_sentences)
                _check_names(figures, scores)
                figures.update(scores)
        finally:
            module.train(was_training)
            self._criterion.train(criterion_was_training)
        return figures

    def _loss(self, max_batches: int | None) -> dict[str, Any]:
        sums, by_file = LossSums(), FileLosses(self._files)
        device = self._engine.device
        any_rank = distributed.any_rank if self._engine.forward_is_collective else None
        current = Current(self._engine.module, 0, any_rank)
        for host_batch in islice(self._batches(), max_batches):
            batch = host_batch.to(device, non_blocking=True)
            if self._criterion.prepares:
                batch = self._criterion.prepare(batch, current)
            output = self._engine(batch)
            loss = self._criterion(output, batch)
            # without the losses of routers, which would hide differences between models
            parts = {**loss.parts, LOSS: loss.of_tokens}
            sums.add(parts, output.moe_stats, batch)
            by_file.add(loss.of_tokens, output.moe_stats, host_batch)
            activity.mark()
        return {**sums.reduce(), **by_file.reduce()}


def _check_names(figures: dict[str, Any], scores: dict[str, Any]) -> None:
    """Refuse metrics that would hide another figure of the validation."""
    if duplicates := sorted(figures.keys() & scores.keys()):
        raise UserError(
            f"validation.metrics: {duplicates[0]!r} is the name of another figure of a validation; "
            "give the metric another name"
        )
