"""Translation that writes its words from the last to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.config.data import DataConfig
from ds_seq.config.task import TranslationConfig
from ds_seq.data.batch import Batch, empty_seq2seq_batch, seq2seq_batch
from ds_seq.data.source import Dataset, TokenBlock
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits, Share, translate
from ds_seq.scores.metric import Measured, Metric, measure
from ds_seq.search.beam_search import BeamSearch
from ds_seq.tasks import build_task
from ds_seq.tasks.base import Task


def _first_words(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    pairs = zip(outputs, references[0], strict=True)
    same = [each.split()[:1] == other.split()[-1:] for each, other in pairs]
    return Measured(100.0 * sum(same) / len(same))


class Backwards:
    """Takes the pairs of translation and turns their targets round.

    Args:
        data: the `data` section.
        lines: most lines of a validation.
    """

    def __init__(self, data: DataConfig, lines: int) -> None:
        self._translation: Task = build_task(TranslationConfig(), data)
        self.tokenizers = self._translation.tokenizers
        self.symbols = self._translation.symbols
        self._files, self._lines = data.raw.valid[0], lines

    def dataset(self, split: str) -> Dataset:
        return self._translation.dataset(split)

    def collate(self, dataset: Any, indices: NDArray[np.integer] | Sequence[int]) -> Batch:
        rows = dataset.rows[np.asarray(indices, np.int64)].astype(np.int64)
        if not len(rows):
            return empty_seq2seq_batch(self.symbols)
        source, target = dataset.source.gather(rows)
        ends = np.cumsum(target.lengths)
        turned = [
            [*target.tokens[start : end - 1][::-1], target.tokens[end - 1]]
            for start, end in zip(ends - target.lengths, ends, strict=True)
        ]
        return seq2seq_batch(source, TokenBlock.of(turned), self.symbols, torch.from_numpy(rows))

    def metric(self, name: str) -> Metric:
        if name != "first_words":
            raise UserError(f"validation.metrics: backwards has `first_words` alone, not {name!r}")
        return Metric(name, higher_is_better=True, compute=_first_words)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        search: BeamSearch,
        limits: BatchLimits,
        device: torch.device,
        share: Share,
        metrics: Sequence[Metric],
        max_sentences: int | None = None,
    ) -> dict[str, float | str]:
        with open(self._files.source, encoding="utf-8") as sources:
            lines = sources.read().splitlines()[: self._lines]
        with open(self._files.target, encoding="utf-8") as targets:
            references = targets.read().splitlines()[: self._lines]
        model.eval()
        here = Share()  # each rank translates all lines: there are few
        found: Any = translate(model, self.tokenizers, lines, search, limits, device, here)  # type: ignore[arg-type]
        model.train()
        return {score.name: score.value for score in measure(metrics, found.lines, references)}
