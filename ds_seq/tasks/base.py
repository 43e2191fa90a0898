"""What the trainer asks of a task: data, batches, and figures for how good a model is."""

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
    """What is learned.

    Attributes:
        tokenizers: between text and ids.
    """

    tokenizers: Tokenizers

    @property
    def symbols(self) -> Symbols:
        """The symbols that batches are made with: those of the target."""

    def dataset(self, split: str) -> Dataset:
        """Return the examples of a split, as many as the task learns from."""

    def collate(self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]) -> Batch:
        """Return the batch of some examples, to train on or to validate with; of none, the empty batch.

        What it puts into `Batch.inputs` is what the model is called with. Training calls it from a
        background thread.

        Args:
            dataset: as `dataset` gave it.
            indices: (B,) numbers of examples in it.
        """

    def metric(self, name: str) -> Metric:
        """Return the metric that the name means here: one that ships with ds_seq, an external one or,
        where the task has any, one of its own.

        Raises:
            UserError: the task cannot give what that metric compares, or there is none of the name.
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
        """Generate for a split and score the result.

        Args:
            model: has the methods of `Decodable`; its mode is set and put back.
            split: `valid`, `test` or `train`.
            search: how to search.
            limits: size of batches and of sentences.
            device: where the model is.
            share: this process's part; with several processes a collective of all of them.
            metrics: what to measure, as `metric` gives them.
            max_sentences: only so many, from the start of the text; None = all.

        Returns:
            Scores by name, for each of them a `<name>_signature`, which may be empty, and a few
            `samples` as text; the same on every rank.
        """
