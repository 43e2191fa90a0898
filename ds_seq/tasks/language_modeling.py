"""Language modeling: each token of a text is predicted from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_seq.activity import mark
from ds_seq.criterions.cross_entropy import smoothed_cross_entropy
from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.corpora import Part
from ds_seq.data.open import SourceChoice, open_source
from ds_seq.data.origin import Expected
from ds_seq.data.source import Dataset, Source
from ds_seq.data.text import TextDataset
from ds_seq.data.text_batch import TextInputs
from ds_seq.distributed import broadcast_object, gather_objects
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.names import LM_METRICS, PERPLEXITY, TextUnit
from ds_seq.scores.metric import Measured, Metric, find_metric
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.tokenizer import Tokenizers

_LINES = 10_000  # decoded at a time
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


class TextSize(NamedTuple):
    """How large a text is."""

    tokens: int
    words: int
    """Words and ends of lines."""
    bytes: int
    """Bytes of UTF-8, ends of lines included."""


class Likelihood(NamedTuple):
    """The probability of the tokens of a text."""

    nll: float
    """Negative logarithm of the probability, in nats."""
    tokens: int

    def of(self, metric: str, size: TextSize) -> float:
        """Return one of `LM_METRICS`; infinity where a float cannot hold it.

        Args:
            metric: its name.
            size: of the whole text, if only a part of it was scored.
        """
        nll = self.nll / self.tokens
        if metric == "bits_per_byte":
            return nll / math.log(2) * size.tokens / size.bytes
        try:
            return math.exp(nll * size.tokens / size.words if metric == "word_perplexity" else nll)
        except OverflowError:
            return math.inf


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
            found = self._likelihoods(model, dataset, limits, device, share, max_sentences)
        finally:
            model.train(was_training)
        sizes = self._sizes(dataset, metrics)
        everything = "\n"  # no name of a file
        found[everything] = Likelihood(*map(sum, zip(*found.values(), strict=True)))
        sizes[everything] = TextSize(*map(sum, zip(*sizes.values(), strict=True)))
        signature = f"block {options.block_tokens}|context {options.context_window}"
        figures: dict[str, float | str] = {}
        for metric in metrics:
            values = {name: found[name].of(metric.name, sizes[name]) for name in found}
            figures[metric.name] = values.pop(everything)
            figures[f"{metric.name}_signature"] = signature
            if len(values) > 1:
                figures |= {f"{metric.name}/{name}": value for name, value in values.items()}
        return figures

    def _likelihoods(
        self,
        model: nn.Module,
        dataset: TextDataset,
        limits: BatchLimits,
        device: torch.device,
        share: Share,
        most: int | None,
    ) -> dict[str, Likelihood]:
        """Return the likelihood of each file of a split, the same on every rank."""
        sums = {}
        for part, blocks in zip(dataset.parts, dataset.by_file(), strict=True):
            chosen = blocks if most is None else blocks[: max(1, most // len(dataset.parts))]
            sums[part.name] = self._sums(model, dataset, chosen, limits, device, share)
        if share.world_size == 1:
            return sums
        of_ranks = gather_objects(sums)
        total = None
        if of_ranks is not None:
            total = {
                name: Likelihood(*map(sum, zip(*(each[name] for each in of_ranks), strict=True)))
                for name in sums
            }
        shared: dict[str, Likelihood] = broadcast_object(total)
        return shared

    @torch.no_grad()
    def _sums(
        self,
        model: nn.Module,
        dataset: TextDataset,
        blocks: NDArray[np.int64],
        limits: BatchLimits,
        device: torch.device,
        share: Share,
    ) -> Likelihood:
        """Return this rank's part of the likelihood of some blocks."""
        lengths = dataset.lengths[blocks]
        sampler = TokenBatchSampler(
            lengths,
            max(limits.max_tokens, int(lengths.max())),
            limits.max_sentences,
            rank=share.rank,
            world_size=share.world_size,
            accumulate=1,
        )
        nll, tokens = 0.0, 0
        for indices in sampler.epoch(0):
            batch = self.collate(dataset, blocks[indices])
            nll += float(self._nll(model, batch.to(device)))
            tokens += batch.num_tokens
            mark()
        return Likelihood(nll, tokens)

    def _nll(self, model: nn.Module, batch: Batch[TextInputs]) -> Tensor:
        output = model(batch.inputs)
        return smoothed_cross_entropy(output.logits, batch.real_labels, 0.0, "torch")[1]

    def _sizes(self, dataset: TextDataset, metrics: Sequence[Metric]) -> dict[str, TextSize]:
        """Return the size of each file of a split, as far as the metrics need it."""
        needs_text = any(metric.name != PERPLEXITY for metric in metrics)
        tokenizer, empty = self.tokenizers.target, len(self.symbols.framed([]))
        sizes = {}
        for part, rows in zip(dataset.parts, dataset.lines, strict=True):
            tokens = words = size = 0
            for start in range(rows.start, rows.stop if needs_text else rows.start, _LINES):
                chosen = np.arange(start, min(start + _LINES, rows.stop))
                (block,) = dataset.source.gather(chosen)
                for ids in np.split(block.tokens, np.cumsum(block.lengths)[:-1]):
                    if len(ids) > empty or self._options.unit == "tokens":
                        text = tokenizer.decode(ids.tolist())
                        tokens += len(ids)
                        words += len(text.split()) + 1
                        size += len(text.encode()) + 1
            sizes[part.name] = TextSize(tokens, words, size)
        return sizes


def _refuse(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    raise UserError("a perplexity is measured by a model, not of text alone")
