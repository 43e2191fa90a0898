"""Metrics of tasks that are evaluated by the probabilities of given tokens, not by generated text.

Shapes: N real labels of a batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq import activity
from ds_seq.data.batch import Batch
from ds_seq.data.source import Dataset
from ds_seq.distributed import sum_over_ranks
from ds_seq.errors import UserError
from ds_seq.generation.perplexity import scored_batches
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.names import TOKEN_METRICS
from ds_seq.plugins import nearest
from ds_seq.scores.metric import Metric

_TOKENS = "tokens"


def token_metric(name: str, task: str) -> Metric:
    """Return a metric of `TOKEN_METRICS`.

    Args:
        name: its name.
        task: name of the task, for messages.

    Raises:
        UserError: there is no such metric.
    """
    if name not in TOKEN_METRICS:
        raise UserError(
            f"validation.metrics: task {task} has no metric {name!r}{nearest(name, TOKEN_METRICS)};"
            f" there are {', '.join(TOKEN_METRICS)}"
        )
    return Metric(name, TOKEN_METRICS[name], _no_text, needs=_TOKENS)


def _no_text(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> NoReturn:
    raise UserError("this metric is computed from the probabilities of tokens, not from text")


@torch.no_grad()
def token_figures(
    model: nn.Module,
    dataset: Dataset,
    collate: Callable[[NDArray[np.integer]], Batch],
    metrics: Sequence[Metric],
    limits: BatchLimits,
    device: torch.device,
    share: Share,
    max_sentences: int | None,
) -> dict[str, float | str]:
    """Return metrics of the labels of a dataset, given what the model reads; see `Task.evaluate`.

    A collective: each rank has the same number of batches, some of which may be empty.
    """
    rows = np.arange(len(dataset))[:max_sentences]
    totals = torch.zeros(3, dtype=torch.float64)  # tokens, losses, right predictions
    was_training = model.training
    model.eval()
    try:
        for indices in scored_batches(dataset, rows, limits, share):
            totals += _sums(model, collate(indices).to(device))
            activity.mark()
    finally:
        model.train(was_training)
    if share.world_size > 1:
        totals = sum_over_ranks(totals)
    count, losses, right = totals.tolist()
    figures = {"perplexity": _exp(losses / count), "accuracy": 100.0 * right / count}
    return {metric.name: figures[metric.name] for metric in metrics}


def _sums(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the number of labels of a batch, the sum of their losses, and how many are right."""
    logits = model(batch.inputs).logits.float()  # (N, V)
    labels = batch.real_labels
    losses = nn.functional.cross_entropy(logits, labels, reduction="sum")
    right = (logits.argmax(dim=-1) == labels).sum()
    return torch.tensor([batch.num_tokens, losses.item(), right.item()], dtype=torch.float64)


def _exp(value: float) -> float:
    """Return the exponential; infinity where it does not fit a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
