"""Language modeling: each token of a text is predicted from those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.data.batch import Batch
from ds_seq.data.corpora import Part
from ds_seq.data.open import SourceChoice, open_source
from ds_seq.data.origin import Expected
from ds_seq.data.source import Dataset, Source
from ds_seq.data.text import TextDataset
from ds_seq.data.text_batch import TextInputs
from ds_seq.errors import UserError
from ds_seq.generation.perplexity import TextSize, figures_of, likelihoods, text_sizes
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.names import LM_METRICS, PERPLEXITY, TextUnit
from ds_seq.scores.metric import Measured, Metric, find_metric
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.tokenizer import Tokenizers

LIKELIHOOD = "likelihood"
"""What the metrics of language models compare; see `ds_seq.scores.metric.Metric.needs`."""

Parts = Callable[[str, Source], Sequence[Part]]
"""(split, its lines) -> its corpora or files."""


class BlockOptions(NamedTuple):
    """How text is cut; see `ds_seq.config.task.LanguageModelingConfig`."""

    unit: TextUnit
    block_tokens: int
    random_start: bool
    context_window: int


class LanguageModelingTask:
    """Language modeling on blocks of text of one side; see `ds_seq.tasks.base.Task`.

    Args:
        data_dir: folder of the shards.
        tokenizers: tokenizers that made the ids, twice the same.
        options: how text is cut.
        parts: returns the corpora or files of a split.
        source: source of the lines.
        expected: what the shards of each split should have been made from.
    """

    def __init__(
        self,
        data_dir: str | Path,
        tokenizers: Tokenizers,
        options: BlockOptions,
        parts: Parts,
        source: SourceChoice,
        expected: Mapping[str, Expected],
    ) -> None:
        self.tokenizers, self.symbols = tokenizers, tokenizers.symbols
        self._data_dir, self._options, self._parts = data_dir, options, parts
        self._source, self._expected = source, expected

    def dataset(self, split: str) -> TextDataset:
        """Return the blocks of a split; those of the training text may move from epoch to epoch."""
        options = self._options
        moves = options.random_start and options.unit == "tokens" and split == "train"
        return self._cut(split, options.block_tokens, moves)

    def _cut(self, split: str, most: int, moves: bool = False, context: int = 0) -> TextDataset:
        fingerprint, expected = self.tokenizers.fingerprint, self._expected.get(split)
        source = open_source(self._source, self._data_dir, split, fingerprint, expected)
        empty = len(self.symbols.framed([]))
        parts = self._parts(split, source)
        return TextDataset(source, parts, self._options.unit, most, moves, context, empty)

    def collate(
        self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]
    ) -> Batch[TextInputs]:
        """Return the padded batch of some blocks; see `Task.collate`."""
        assert isinstance(dataset, TextDataset)
        return dataset.collate(indices, self.symbols)

    def metric(self, name: str) -> Metric:
        """Return a metric of the probability of the text; see `Task.metric`."""
        if name in LM_METRICS:
            return Metric(name, higher_is_better=False, compute=_refuse, needs=LIKELIHOOD)
        metric = find_metric(name, "", "validation.metrics")
        raise UserError(
            f"validation.metrics: {name} compares {metric.needs}, but language modeling gives a "
            f"{LIKELIHOOD}; there are {', '.join(LM_METRICS)}"
        )

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
        """Measure the probability of a split; see `Task.evaluate`.

        Each token is scored once, in blocks of `block_tokens`, of which `context_window` are read
        again; `max_sentences` bounds the number of blocks.
        """
        options = self._options
        new = options.block_tokens - options.context_window
        dataset = self._cut(split, new, context=options.context_window)
        was_training = model.training
        model.eval()
        try:
            tokenizer = self.tokenizers.target
            found = likelihoods(model, dataset, tokenizer, limits, device, share, max_sentences)
        finally:
            model.train(was_training)
        sizes: dict[str, TextSize] = {}
        if any(metric.name != PERPLEXITY for metric in metrics):
            sizes = text_sizes(dataset, tokenizer, options.unit == "tokens")
        signature = f"block {options.block_tokens}|context {options.context_window}"
        figures: dict[str, float | str] = {}
        for metric in metrics:
            figures[metric.name], each = figures_of(found, sizes, metric.name)
            figures[f"{metric.name}_signature"] = signature
            if len(each) > 1:
                figures |= {f"{metric.name}/{name}": value for name, value in each.items()}
        return figures


def _refuse(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    raise UserError("a perplexity is measured by a model, not of text alone")
