"""Tasks that learn from noisy text: what was there, or what single hidden tokens were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.data.batch import Batch
from ds_seq.data.denoising import DenoisingDataset, MaskedDataset
from ds_seq.data.source import Dataset
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.scores.metric import Metric
from ds_seq.search.beam_search import BeamSearch
from ds_seq.tasks.token_figures import token_figures, token_metric
from ds_seq.text.tokenizer import Tokenizers

NoisyText = DenoisingDataset | MaskedDataset


class NoisyTextTask:
    """Learns from noisy text; evaluated by the probabilities of the tokens to predict.

    Args:
        name: name of the task, for messages.
        tokenizers: tokenizers of the text.
        dataset: returns the text of a split with its noise.
    """

    def __init__(
        self, name: str, tokenizers: Tokenizers, dataset: Callable[[str], NoisyText]
    ) -> None:
        self.tokenizers, self.symbols = tokenizers, tokenizers.symbols
        self._name, self._dataset = name, dataset

    def dataset(self, split: str) -> NoisyText:
        """Return the text of a split; see `Task.dataset`."""
        return self._dataset(split)

    def collate(self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]) -> Batch:
        """Return the batch of some texts; see `Task.collate`."""
        assert isinstance(dataset, NoisyText)
        return dataset.collate(indices)

    def metric(self, name: str) -> Metric:
        """Return `accuracy` or `perplexity`; see `Task.metric`."""
        return token_metric(name, self._name)

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
        """Score the tokens to predict of a split; see `Task.evaluate`."""
        dataset = self.dataset(split)
        collate = partial(self.collate, dataset)
        return token_figures(model, dataset, collate, metrics, limits, device, share, max_sentences)
