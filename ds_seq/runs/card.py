"""Descriptions of trained models, independent of the format that they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.model import ModelConfig
from ds_seq.data.expected import files_of, raw_files
from ds_seq.data.origin import same_language
from ds_seq.errors import UserError
from ds_seq.models.protocol import TranslationModel
from ds_seq.names import Precision
from ds_seq.text.experts import expert_ids
from ds_seq.text.lines import PairPath
from ds_seq.text.tags import language_tags, tag_of
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.weights.packed import PackedFile
from ds_seq.weights.source import TensorSource

_SMALL_MODEL = 10_000_000
"""Number of parameters that can be built anywhere."""


@dataclass(frozen=True)
class TrainingSizes:
    """Data sizes of a training run, for passing the same data through the model again.

    Attributes:
        max_source_length: most tokens of a source, including the end symbol.
        max_target_length: most tokens of a target, including the end symbol.
        max_tokens: most padded tokens of a batch.
        max_sentences: most sentences of a batch; None for no limit.
        shard_size: sentence pairs per shard of the data.
    """

    max_source_length: int
    max_target_length: int
    max_tokens: int
    max_sentences: int | None
    shard_size: int


@dataclass(frozen=True)
class ModelCard:
    """The properties of a trained model that its users need.

    Attributes:
        name: name of the run.
        task: name of the task, such as `translation`.
        tokenizers: tokenizers of source and target.
        source_lang: language code of the source.
        target_lang: language code of the target.
        max_positions: most tokens of a source or target, including the end symbol.
        longest_source: most tokens of a source; fewer than `max_positions` if longer sources were
            cut in training.
        precision: precision of the training.
        generation: default settings of generation.
        test: raw text of the test split; may be empty.
        sizes: data sizes of the training run.
        routes_by_language: whether experts are chosen by the language tag of the source.
        joint_vocab: whether source and target share one vocabulary.
        language_tags: the user symbols that are language tags; None: those that look like tags.
        tags_by_language: the tag of each target language, if training added it.
        test_tags: tags at the start of the sources of each text of the test split; empty: none.
        experts: start symbols of the experts of a mixture; empty: the model is none.
    """

    name: str
    task: str
    tokenizers: Tokenizers
    source_lang: str
    target_lang: str
    max_positions: int
    longest_source: int
    precision: Precision
    generation: GenerationConfig
    test: tuple[PairPath, ...]
    sizes: TrainingSizes
    routes_by_language: bool = False
    joint_vocab: bool = True
    language_tags: tuple[str, ...] | None = None
    tags_by_language: Mapping[str, str] = field(default_factory=dict)
    test_tags: tuple[tuple[str, ...], ...] = ()
    experts: tuple[str, ...] = ()

    @property
    def reads_prompts(self) -> bool:
        """Whether the model is a language model, which continues a text."""
        return self.task == "language_modeling"

    @property
    def expert_ids(self) -> list[int]:
        """Ids of `experts`."""
        return expert_ids(self.tokenizers.target, self.experts) if self.experts else []

    @property
    def source_tags(self) -> dict[int, str]:
        """Language tags, by id, one of which should begin every source; may be empty."""
        tokenizer = self.tokenizers.source
        if not self.routes_by_language:
            return language_tags(tokenizer, self.language_tags)
        ids = sorted(tokenizer.tag_ids)
        return dict(zip(ids, tokenizer.pieces(ids), strict=True))

    def language_tag(self, language: str, option: str) -> str:
        """Return the tag at the start of a source that is to be translated into a language.

        Args:
            language: language code.
            option: the option or place that has the code, for messages.

        Raises:
            UserError: the model knows no such tag.
        """
        tags = list(dict.fromkeys([*self.tags_by_language.values(), *self.source_tags.values()]))
        tag = self.tags_by_language.get(language) or tag_of(language, tags)
        if tag is not None:
            return tag
        if not tags:
            raise UserError(
                f"{option} {language}: {self.name} has no language tags, because it translates "
                f"into {self.target_lang} only; leave it out"
            )
        raise UserError(
            f"{option} {language}: {self.name} knows no tag of this language; its tags are "
            f"{', '.join(tags)}"
        )

    @classmethod
    def of_experiment(cls, config: ExperimentConfig, tokenizers: Tokenizers) -> ModelCard:
        """Build the card of a model that was trained by ds_seq.

        Args:
            config: experiment of the training run.
            tokenizers: tokenizers of the run.
        """
        data, train = config.data, config.train
        return cls(
            name=config.name,
            task=config.task.name,
            tokenizers=tokenizers,
            source_lang=data.source_lang,
            target_lang=data.target_lang,
            max_positions=config.model.max_positions,
            longest_source=config.longest_source,
            precision=train.precision,
            generation=config.generation,
            test=tuple(raw_files(data, "test", must_exist=False)),
            sizes=TrainingSizes(
                max_source_length=data.max_source_length,
                max_target_length=data.max_target_length,
                max_tokens=config.batch_tokens,
                max_sentences=train.max_sentences,
                shard_size=data.shard_size,
            ),
            routes_by_language=config.routes_by_language,
            joint_vocab=data.vocab.joint,
            language_tags=None if data.language_tags is None else tuple(data.language_tags),
            tags_by_language=dict(data.mixing.language_tags),
            test_tags=tuple(
                tuple(data.tags(entry)[0])
                for _, entry in data.entries("test")
                for _ in files_of(data, "test", entry)
            ),
            experts=tuple(config.experts),
        )

    def can_read(self, languages: tuple[str, str]) -> bool:
        """Return whether the model translates from the first of two languages to the second.

        A model whose source lines begin with tags may translate more than its card says.
        """
        own = (self.source_lang, self.target_lang)
        return bool(self.tokenizers.source.tag_ids) or all(map(same_language, own, languages))


@dataclass(frozen=True)
class StoredRun:
    """A trained model on disk: its description and the source of its tensors.

    Attributes:
        card: properties of the model.
        model_config: config from which the model is built.
        weights: source of the tensors.
        experiment: experiment of the training run, if the format stores it.
        suffix: what has followed the name of the checkpoint, such as `:raw`.
    """

    card: ModelCard
    model_config: ModelConfig
    weights: TensorSource
    experiment: ExperimentConfig | None = None
    suffix: str = ""

    @property
    def tokenizers(self) -> Tokenizers:
        """Tokenizers of source and target."""
        return self.card.tokenizers

    @property
    def source(self) -> Path:
        """Checkpoint folder or file of the weights."""
        return self.weights.path

    @property
    def files(self) -> Sequence[Path]:
        """Files of the weights."""
        return self.weights.files

    @property
    def checkpoint(self) -> str:
        """The path by which `open_run` finds these weights again, whatever is trained since."""
        return f"{self.source}{self.suffix}"

    @property
    def seed(self) -> int:
        """Seed of the training run; 1 if unknown."""
        return 1 if self.experiment is None else self.experiment.train.seed

    def require_experiment(self) -> ExperimentConfig:
        """Return the experiment of the training run, which changes to the model require.

        Raises:
            UserError: the format does not store the experiment, or the weights are rounded.
        """
        self.require_full_precision()
        return _required(self.experiment, self.source)

    @property
    def is_packed(self) -> bool:
        """Whether weights are stored in one or two bits, without those they were rounded from."""
        return isinstance(self.weights, PackedFile)

    def require_full_precision(self) -> None:
        """Refuse a packed export where the weights are to be changed or averaged.

        Raises:
            UserError: the weights are rounded.
        """
        _refuse_packed(self.is_packed, self.source)

    def check_size(self) -> None:
        """Refuse to build a model that its own weights cannot fill and that may exhaust the memory.

        A model of about the right size is left to `ds_seq.weights.fill`, which names the tensor
        that does not fit.

        Raises:
            UserError: the config describes far more parameters than the weights have.
        """
        sizes, stored = self.tokenizers.sizes, self.weights.num_values()
        size = self.model_config.num_params(sizes.target, sizes.source)
        if size is not None and size.total > 2 * stored + _SMALL_MODEL:
            raise UserError(
                f"{self.source}: holds {stored:,} values, but the model of the experiment has "
                f"{size.total:,} parameters; the weights belong to another model"
            )


@dataclass(frozen=True)
class LoadedRun:
    """A trained model in memory with its description.

    Attributes:
        card: properties of the model.
        model_config: config from which the model was built.
        model: the model, in evaluation mode.
        source: checkpoint folder or file from which the weights were loaded.
        experiment: experiment of the training run, if the format stores it.
        files: files of the weights; empty: `source` is the file.
        is_packed: whether the weights were read from a packed export.
    """

    card: ModelCard
    model_config: ModelConfig
    model: nn.Module
    source: Path
    experiment: ExperimentConfig | None = None
    files: Sequence[Path] = ()
    is_packed: bool = False

    @property
    def tokenizers(self) -> Tokenizers:
        """Tokenizers of source and target."""
        return self.card.tokenizers

    @property
    def seq2seq(self) -> TranslationModel:
        """The model as a model that translates: ours, or an external one with its methods.

        Raises:
            UserError: it is a language model, or has no decoder.
        """
        if self.card.reads_prompts:
            raise UserError(
                f"{self.source}: is a language model, which has no source; use ds-seq generate or "
                "interactive with prompts, or ds-seq perplexity"
            )
        if self.model_config.stacks == ("encoder",):
            raise UserError(
                f"{self.source}: is a model {self.model_config.name}, which predicts hidden tokens "
                "and generates no text; let a translation model start from it (train.init_from)"
            )
        return cast(TranslationModel, self.model)

    @property
    def searched(self) -> Any:
        """The model as a `ds_seq.search.beam_search.Decodable`; it may be a language model."""
        return self.model if self.card.reads_prompts else self.seq2seq

    def require_experiment(self) -> ExperimentConfig:
        """Return the experiment of the training run; see `StoredRun.require_experiment`."""
        _refuse_packed(self.is_packed, self.source)
        return _required(self.experiment, self.source)


def _refuse_packed(is_packed: bool, source: Path) -> None:
    if is_packed:
        raise UserError(
            f"{source}: is a packed export, whose weights are rounded to one or two bits; use the "
            "run, or an export of it with --format safetensors"
        )


def _required(experiment: ExperimentConfig | None, source: Path) -> ExperimentConfig:
    if experiment is None:
        raise UserError(
            f"{source}: comes without the experiment of its training; only a model that ds_seq has "
            "trained can be changed or trained further"
        )
    return experiment
