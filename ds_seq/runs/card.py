"""What a user of a trained model needs to know of it, from whatever format it was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from ds_seq.config.data import SplitConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.model import ModelConfig
from ds_seq.errors import UserError
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.names import Precision
from ds_seq.tasks.translation import RawSplit
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.weights.source import TensorSource


@dataclass(frozen=True)
class TrainingSizes:
    """Sizes that a model was trained with, for those who pass the same data through it again.

    Attributes:
        max_source_length: longest source in tokens, end symbol included.
        max_target_length: longest target likewise.
        max_tokens: padded tokens of a batch.
        max_sentences: most sentences of a batch; None: no limit.
        shard_size: sentence pairs per shard of the data.
    """

    max_source_length: int
    max_target_length: int
    max_tokens: int
    max_sentences: int | None
    shard_size: int


@dataclass(frozen=True)
class ModelCard:
    """A trained model, as its user sees it.

    Attributes:
        name: of the run.
        task: kind of task, such as ``translation``.
        tokenizers: of both sides.
        source_lang: language code of what it reads.
        target_lang: language code of what it writes.
        max_positions: longest input and output in tokens, end symbol included.
        precision: number format of the training.
        generation: how it translates unless told otherwise.
        test: raw text that was held out for a test, if there is any.
        sizes: of the training.
    """

    name: str
    task: str
    tokenizers: Tokenizers
    source_lang: str
    target_lang: str
    max_positions: int
    precision: Precision
    generation: GenerationConfig
    test: tuple[RawSplit, ...]
    sizes: TrainingSizes

    @classmethod
    def of_experiment(cls, config: ExperimentConfig, tokenizers: Tokenizers) -> ModelCard:
        """The card of a model that ds_seq has trained.

        Args:
            config: of the training.
            tokenizers: of the run.
        """
        data, train = config.data, config.train
        return cls(
            name=config.name,
            task=config.task.name,
            tokenizers=tokenizers,
            source_lang=data.source_lang,
            target_lang=data.target_lang,
            max_positions=config.model.max_positions,
            precision=train.precision,
            generation=config.generation,
            test=raw_splits(data.raw.test),
            sizes=TrainingSizes(
                max_source_length=data.max_source_length,
                max_target_length=data.max_target_length,
                max_tokens=train.max_tokens,
                max_sentences=train.max_sentences,
                shard_size=data.shard_size,
            ),
        )


def raw_splits(files: list[SplitConfig]) -> tuple[RawSplit, ...]:
    """The raw text that a section of ``data.raw`` names."""
    return tuple(RawSplit(pair.source, pair.target) for pair in files)


@dataclass(frozen=True)
class StoredRun:
    """A trained model on disk: what it is, and where its tensors are.

    Attributes:
        card: what its user needs to know.
        model_config: how the model is built.
        weights: its tensors.
        experiment: of its training, if the format has it.
    """

    card: ModelCard
    model_config: ModelConfig
    weights: TensorSource
    experiment: ExperimentConfig | None = None

    @property
    def tokenizers(self) -> Tokenizers:
        """Those of the card."""
        return self.card.tokenizers

    @property
    def source(self) -> Path:
        """The checkpoint folder or file of the weights."""
        return self.weights.path

    @property
    def seed(self) -> int:
        """The seed of the training; 1 where none is known."""
        return 1 if self.experiment is None else self.experiment.train.seed

    def require_experiment(self) -> ExperimentConfig:
        """The experiment of the training, for what changes the model or trains it further.

        Raises:
            UserError: the format has none.
        """
        return _required(self.experiment, self.source)


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with what it takes to use it.

    Attributes:
        card: what its user needs to know.
        model_config: how the model was built.
        model: in evaluation mode.
        source: the checkpoint folder or file that the weights came from.
        experiment: of its training, if the format has it.
    """

    card: ModelCard
    model_config: ModelConfig
    model: nn.Module
    source: Path
    experiment: ExperimentConfig | None = None

    @property
    def tokenizers(self) -> Tokenizers:
        """Those of the card."""
        return self.card.tokenizers

    @property
    def seq2seq(self) -> Seq2SeqTransformer:
        """The model, as one that translates: ours, or an external one with the same methods."""
        return cast(Seq2SeqTransformer, self.model)

    def require_experiment(self) -> ExperimentConfig:
        """See `StoredRun.require_experiment`."""
        return _required(self.experiment, self.source)


def _required(experiment: ExperimentConfig | None, source: Path) -> ExperimentConfig:
    if experiment is None:
        raise UserError(
            f"{source}: comes without the experiment of its training; only a model that ds_seq has "
            "trained can be changed or trained further"
        )
    return experiment
