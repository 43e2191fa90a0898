"""Pre-training of an encoder-decoder: it reads noisy text and writes what was there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.data.denoising import DenoisingDataset, Noise, Texts
from ds_seq.data.source import Dataset
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.scores.metric import Metric
from ds_seq.search.beam_search import BeamSearch
from ds_seq.tasks.token_figures import token_figures, token_metric
from ds_seq.text.tokenizer import Tokenizers


class DenoisingTask:
    """Restores noisy text; evaluated by the probabilities of the tokens of the targets.

    Args:
        tokenizers: tokenizers of the text.
        texts: returns the text of a split.
        noise: makes sources and targets.
        limits: most tokens of a source, and of a target.
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        texts: Callable[[str], Texts],
        noise: Noise,
        limits: tuple[int, int],
    ) -> None:
        self.tokenizers, self.symbols = tokenizers, tokenizers.symbols
        self._texts, self._noise, self._limits = texts, noise, limits

    def dataset(self, split: str) -> DenoisingDataset:
        """Return the text of a split with its noise."""
        symbols = self.tokenizers.source.symbols, self.tokenizers.target.symbols
        return DenoisingDataset(self._texts(split), self._noise, symbols, self._limits)

    def collate(
        self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]
    ) -> Batch[Seq2SeqInputs]:
        """Return the batch of some texts; see `Task.collate`."""
        assert isinstance(dataset, DenoisingDataset)
        return dataset.collate(indices)

    def metric(self, name: str) -> Metric:
        """Return `accuracy` or `perplexity`; see `Task.metric`."""
        return token_metric(name, "denoising")

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
        """Score the targets of a split, given the sources; see `Task.evaluate`."""
        dataset = self.dataset(split)
        collate = partial(self.collate, dataset)
        return token_figures(model, dataset, collate, metrics, limits, device, share, max_sentences)
