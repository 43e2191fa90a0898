"""The probability that a language model gives a text: perplexity per token and word, bits per byte.

The text is cut into blocks, each token is scored once, and a block may be preceded by tokens that
are read again for context, as by `fairseq-eval-lm --context-window`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_seq.activity import mark
from ds_seq.criterions.cross_entropy import smoothed_cross_entropy
from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.source import Dataset
from ds_seq.data.text import TextDataset
from ds_seq.data.text_batch import TextInputs
from ds_seq.distributed import broadcast_object, gather_objects
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.text.tokenizer import Tokenizer

_LINES = 10_000  # decoded at a time


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
        """Return one of `ds_seq.names.LM_METRICS`; infinity where a float cannot hold it.

        Args:
            metric: its name.
            size: size of the whole text, if only a part of it was scored.
        """
        nll = self.nll / self.tokens
        if metric == "bits_per_byte":
            return nll / math.log(2) * size.tokens / size.bytes
        try:
            return math.exp(nll * size.tokens / size.words if metric == "word_perplexity" else nll)
        except OverflowError:
            return math.inf


def together(values: Mapping[str, tuple[float, ...]]) -> list[float]:
    """Return the sums of tuples, place by place."""
    return [sum(column) for column in zip(*values.values(), strict=True)]


@torch.no_grad()
def likelihoods(
    model: nn.Module,
    dataset: TextDataset,
    tokenizer: Tokenizer,
    limits: BatchLimits,
    device: torch.device,
    share: Share,
    max_blocks: int | None = None,
) -> dict[str, Likelihood]:
    """Return the likelihood of each file of a text, the same on every rank.

    Args:
        model: the model, in evaluation mode.
        dataset: blocks of the text.
        tokenizer: tokenizer of the text.
        limits: size of the batches.
        device: device of the model.
        share: this process's part of the work; a collective if there are several processes.
        max_blocks: number of blocks to score, divided among the files; None: all.
    """
    sums = {}
    for part, blocks in zip(dataset.parts, dataset.by_file(), strict=True):
        chosen = (
            blocks if max_blocks is None else blocks[: max(1, max_blocks // len(dataset.parts))]
        )
        sums[part.name] = _sums(model, dataset, chosen, tokenizer, limits, device, share)
    if share.world_size == 1:
        return sums
    of_ranks = gather_objects(sums)
    total = None
    if of_ranks is not None:
        total = {}
        for name in sums:
            of_name = {str(rank): each[name] for rank, each in enumerate(of_ranks)}
            nll, tokens = together(of_name)
            total[name] = Likelihood(nll, int(tokens))
    shared: dict[str, Likelihood] = broadcast_object(total)
    return shared


def scored_batches(
    dataset: Dataset, rows: NDArray[np.int64], limits: BatchLimits, share: Share
) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the examples of each of this rank's batches; every rank has as many.

    Args:
        dataset: the examples.
        rows: numbers of those to score.
        limits: limits on the size of batches, of which an example may be longer.
        share: this process's share of the work.
    """
    lengths = dataset.lengths[rows]
    sampler = TokenBatchSampler(
        lengths,
        max(limits.max_tokens, int(lengths.max())),
        limits.max_sentences,
        rank=share.rank,
        world_size=share.world_size,
        accumulate=1,
    )
    for indices in sampler.epoch(0):
        yield rows[indices]


def _sums(
    model: nn.Module,
    dataset: TextDataset,
    blocks: NDArray[np.int64],
    tokenizer: Tokenizer,
    limits: BatchLimits,
    device: torch.device,
    share: Share,
) -> Likelihood:
    """Return this rank's part of the likelihood of some blocks."""
    nll, tokens = 0.0, 0
    for indices in scored_batches(dataset, blocks, limits, share):
        batch = dataset.collate(indices, tokenizer.symbols)
        nll += float(_nll(model, batch.to(device)))
        tokens += batch.num_tokens
        mark()
    return Likelihood(nll, tokens)


def _nll(model: nn.Module, batch: Batch[TextInputs]) -> Tensor:
    output = model(batch.inputs._replace(labels=batch.real_labels))
    if output.label_log_probs is not None:
        return -output.label_log_probs.sum()
    return smoothed_cross_entropy(output.logits, batch.real_labels, 0.0, "torch")[1]


def text_sizes(
    dataset: TextDataset, tokenizer: Tokenizer, with_empty_lines: bool
) -> dict[str, TextSize]:
    """Return the size of each file of a text.

    Args:
        dataset: blocks of the text.
        tokenizer: tokenizer of the text.
        with_empty_lines: whether the blocks have them.
    """
    sizes, empty = {}, len(tokenizer.symbols.framed([]))
    for part, rows in zip(dataset.parts, dataset.lines, strict=True):
        tokens = words = size = 0
        for start in range(rows.start, rows.stop, _LINES):
            (block,) = dataset.source.gather(np.arange(start, min(start + _LINES, rows.stop)))
            for ids in np.split(block.tokens, np.cumsum(block.lengths)[:-1]):
                if len(ids) > empty or with_empty_lines:
                    text = tokenizer.decode(ids.tolist())
                    tokens += len(ids)
                    words += len(text.split()) + 1
                    size += len(text.encode()) + 1
        sizes[part.name] = TextSize(tokens, words, size)
    return sizes


def figures_of(
    found: Mapping[str, Likelihood], sizes: Mapping[str, TextSize], metric: str
) -> tuple[float, dict[str, float]]:
    """Return a metric of a whole text, and of each of its files.

    Args:
        found: likelihood by file.
        sizes: size by file; may be empty for a perplexity per token.
        metric: name of the metric.
    """
    none = TextSize(1, 1, 1)
    nll, tokens = together(found)
    size = TextSize(*map(int, together(sizes))) if sizes else none
    each = {name: part.of(metric, sizes.get(name, none)) for name, part in found.items()}
    return Likelihood(nll, int(tokens)).of(metric, size), each
