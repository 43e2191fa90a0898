"""A task and a model from outside: another kind of inputs, through the command that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ds_seq.config.data import DataConfig
from ds_seq.config.model import ModelConfig
from ds_seq.config.task import TranslationConfig
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.models.output import ModelOutput
from ds_seq.names import Capture
from ds_seq.tasks import build_task
from ds_seq.tasks.base import Task
from tests.system import forked
from tests.system.runs import TINY, Lab, losses, records


class TargetOnly(NamedTuple):
    """What a language model reads."""

    tokens: Tensor
    mask: Tensor


class LanguageModeling:
    """Learns each target from its own past. Everything but its batches is translation's."""

    def __init__(self, data: DataConfig, **options: Any) -> None:
        self._task: Task = build_task(TranslationConfig(), data)
        self.tokenizers, self.symbols = self._task.tokenizers, self._task.symbols
        self.dataset = self._task.dataset

    def collate(
        self, dataset: ParallelDataset, indices: NDArray[np.integer] | Sequence[int]
    ) -> Batch[TargetOnly]:
        """See `Task.collate`."""
        batch = self._task.collate(dataset, indices)
        inputs = TargetOnly(batch.inputs.target, batch.mask)
        return Batch(
            batch.indices,
            inputs,
            batch.labels,
            batch.mask,
            batch.num_tokens,
            batch.num_sentences,
        )


class Bigram(nn.Module):
    """Scores the next token by the last one."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)

    def forward(self, inputs: TargetOnly, capture: Capture = "none") -> ModelOutput:
        """Logits (N, V) of the real targets."""
        assert isinstance(inputs, TargetOnly) and capture == "none"
        return ModelOutput(self.output(self.table(inputs.tokens[inputs.mask])), {}, [])


def build_bigram(
    config: ModelConfig, vocab_size: int, expert_parallel: int, rank: int, seed: int
) -> nn.Module:
    return Bigram(vocab_size, config.d_model)


def test_training_and_validation_take_the_batches_of_the_task(lab: Lab, tmp_path: Path) -> None:
    (finished,) = forked.train(
        lab.dense,
        *TINY,
        f"task.name={__name__}:LanguageModeling",
        f"model.name={__name__}:build_bigram",
        f"run_dir={tmp_path / 'run'}",
        "optimizer.lr=0.05",
        "train.valid_bleu=false",
        "train.best_metric=loss",
        "train.validate_every=10",
        "train.max_updates=20",
        "train.log_every=1",
    )
    assert finished.code == 0, finished.err
    run = tmp_path / "run"
    by_update = losses(run)
    assert by_update[20] < by_update[1] - 0.5
    assert records(run, "valid")[-1]["loss"] < by_update[1]
