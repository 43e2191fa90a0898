"""Validation: loss per token over a split, and BLEU of its translations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from ds_seq.criterions.base import Criterion
from ds_seq.data.batch import Batch
from ds_seq.training.engine import Engine
from ds_seq.training.metrics import LossSums

Score = Callable[[nn.Module, int | None], dict[str, Any]]
"""(model, most sentences or None) -> ``bleu``, ``chrf``, ``signature``, ``samples``, ...; a
collective."""


class Validator:
    """Measures a model on a held-out split without leaving a trace in it.

    Args:
        engine: runs the forwards.
        criterion: gives the loss parts.
        batches: makes this rank's batches of the split anew; the same number on every rank.
        score: translates and scores; ``None`` measures the loss only.
        max_sentences: most sentences to translate; ``None`` for all.
    """

    def __init__(
        self,
        engine: Engine,
        criterion: Criterion,
        batches: Callable[[], Iterable[Batch]],
        score: Score | None,
        max_sentences: int | None,
    ) -> None:
        self._engine, self._criterion = engine, criterion
        self._batches, self._score, self._max_sentences = batches, score, max_sentences

    @torch.no_grad()
    def __call__(self, max_batches: int | None = None) -> dict[str, Any]:
        """Validate; a collective.

        Args:
            max_batches: try only so many batches, and translate only a few sentences: the rehearsal
                before training.

        Returns:
            Per-token means of the loss parts, ``loss`` (what is optimised, per token), ``ppl``,
            routing figures, and what `score` gives.
        """
        module = self._engine.module
        was_training = module.training
        module.eval()
        self._criterion.train(False)
        try:
            figures = self._loss(max_batches)
            if self._score is not None:
                few = None if max_batches is None else 2 * max_batches
                figures.update(self._score(module, few or self._max_sentences))
        finally:
            module.train(was_training)
            self._criterion.train(was_training)
        return figures

    def _loss(self, max_batches: int | None) -> dict[str, Any]:
        sums = LossSums()
        device = self._engine.device
        for host_batch in islice(self._batches(), max_batches):
            batch = host_batch.to(device, non_blocking=True)
            output = self._engine(batch)
            loss = self._criterion(output, batch)
            parts = {**loss.parts, "loss": loss.total.detach()}
            sums.add(parts, output.moe_stats, batch)
        return dict(sums.reduce())
