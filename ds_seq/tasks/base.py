"""The interface of tasks to the trainer: data, batches and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.data.batch import Batch
from ds_seq.data.source import Dataset
from ds_seq.generation.translate import BatchLimits, Share
from ds_seq.scores.metric import Metric
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.tokenizer import Symbols, Tokenizers


class Task(Protocol):
    """A task that a model learns.

    Attributes:
        tokenizers: convert between text and ids.
    """

    tokenizers: Tokenizers

    @property
    def symbols(self) -> Symbols:
        """The special symbols used in batches: those of the target side."""

    def dataset(self, split: str) -> Dataset:
        """Return the examples of a split that the task uses."""

    def collate(self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]) -> Batch:
        """Return the batch of some examples, for training or validation; of none, the empty batch.

        The model is called with `Batch.inputs`. Training calls this from a background thread.

        Args:
            dataset: dataset returned by `dataset`.
            indices: (B,) numbers of the examples in it.
        """

    def metric(self, name: str) -> Metric:
        """Return a metric by name: a built-in one, an external one or one that the task defines.

        Raises:
            UserError: the name is unknown, or the task does not produce what the metric compares.
        """

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
        """Generate outputs for a split and score them.

        Args:
            model: model with the methods of `Decodable`; its training mode is restored afterwards.
            split: `valid`, `test` or `train`.
            search: search algorithm.
            limits: limits on the size of batches and sentences.
            device: device of the model.
            share: this process's share of the work; a collective if there are several processes.
            metrics: metrics returned by `metric`.
            max_sentences: number of sentences, spread over the files of the split; None means all.

        Returns:
            Scores by name, a possibly empty `<name>_signature` for each of them, with several
            files a `<name>/<file>` for each, and a few `samples` as text; the same on every rank.
        """
