"""Table of the tasks, by the `name` in their config.

A task is imported where it is built, because `ds_seq.tasks.prepare` runs without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ds_seq.config.base import ExternalConfig
from ds_seq.config.data import DataConfig, FairseqConfig
from ds_seq.config.task import (
    DenoisingConfig,
    LanguageModelingConfig,
    MaskedLanguageModelingConfig,
    TaskConfig,
    TranslationConfig,
)
from ds_seq.data.expected import expected_by_experiment, raw_files
from ds_seq.data.open import SourceChoice
from ds_seq.names import SPLITS
from ds_seq.plugins import find_plugin
from ds_seq.text.build import load_tokenizers
from ds_seq.text.tokenizer import Tokenizers

if TYPE_CHECKING:
    from ds_seq.tasks.base import Task

__all__ = ["TASKS", "build_task"]


def _translation(config: TranslationConfig, data: DataConfig) -> Task:
    from ds_seq.tasks.translation import TranslationTask

    tokenizers = load_tokenizers(data, data.dir)
    more: dict[str, Any] = {}
    if not data.has_plain_pairs:
        from ds_seq.tasks.mix import corpus_parts, held_out_texts

        more["parts"] = partial(corpus_parts, data, tokenizers)
        more["held_out"] = {split: held_out_texts(data, split) for split in SPLITS}
    if data.long_pairs != "skip":
        from ds_seq.data.truncation import TruncatedSource

        more["cut"] = partial(TruncatedSource, limits=cut_limits(data))
    return TranslationTask(
        data_dir=data.dir,
        tokenizers=tokenizers,
        raw={split: raw_files(data, split, must_exist=False) for split in SPLITS},
        target_lang=data.target_lang,
        rouge_stemmer=config.rouge_stemmer,
        num_samples=config.samples,
        max_source_length=data.max_source_length,
        max_target_length=data.max_target_length,
        source=source_choice(data, tokenizers),
        expected={split: expected_by_experiment(data, split) for split in SPLITS},
        **more,
    )


def cut_limits(data: DataConfig) -> tuple[int | None, int | None]:
    """Return at what lengths `data.long_pairs` cuts sources and targets; None: not at all."""
    if data.long_pairs == "skip":
        return None, None
    sources, targets = map(max, numbers_of_tags(data))
    most_target = data.max_target_length - targets
    cuts_targets = data.long_pairs == "truncate"
    return data.max_source_length - sources, most_target if cuts_targets else None


def numbers_of_tags(data: DataConfig) -> tuple[list[int], list[int]]:
    """Return how many tags the sources, and the targets, of each text begin with; at least a 0."""
    tags = [data.tags(text) for split in SPLITS for _, text in data.entries(split)]
    return [0, *(len(source) for source, _ in tags)], [0, *(len(target) for _, target in tags)]


def _denoising(config: DenoisingConfig, data: DataConfig) -> Task:
    from ds_seq.tasks.noisy import denoising

    return denoising(config, data)


def _masked(config: MaskedLanguageModelingConfig, data: DataConfig) -> Task:
    from ds_seq.tasks.noisy import masked_language_modeling

    return masked_language_modeling(config, data)


def _language_modeling(config: LanguageModelingConfig, data: DataConfig) -> Task:
    from ds_seq.tasks.language_modeling import BlockOptions, LanguageModelingTask
    from ds_seq.tasks.mix import text_parts

    tokenizers = load_tokenizers(data, data.dir)
    return LanguageModelingTask(
        data.dir,
        tokenizers,
        BlockOptions(
            config.blocks, config.block_tokens, config.random_start, config.context_window
        ),
        partial(text_parts, data),
        source_choice(data, tokenizers),
        {split: expected_by_experiment(data, split) for split in SPLITS},
    )


def source_choice(data: DataConfig, tokenizers: Tokenizers) -> SourceChoice:
    """Return the source that `data.source` names, with its options.

    Args:
        data: the section.
        tokenizers: tokenizers of the run, into whose ids other formats are translated.
    """
    config = data.source
    if isinstance(config, FairseqConfig):
        options = {"folders": config.folders, "languages": data.fairseq_languages}
        return SourceChoice(config.name, {**options, "tokenizers": tokenizers})
    if isinstance(config, ExternalConfig):
        return SourceChoice(config.name, config.options)
    return SourceChoice(config.name, config.model_dump(exclude={"name"}))


TASKS: dict[str, Callable[[Any, DataConfig], Task]] = {
    "translation": _translation,
    "language_modeling": _language_modeling,
    "denoising": _denoising,
    "masked_language_modeling": _masked,
}


def build_task(config: TaskConfig, data: DataConfig) -> Task:
    """Build the task that `config.name` names, built-in or an external `package.module:Name`.

    An external task is called with the data section and its options.
    """
    make = find_plugin("task", config.name, TASKS)
    if isinstance(config, ExternalConfig):
        task: Task = make(data, **config.options)  # type: ignore[call-arg, arg-type]
        return task
    return make(config, data)
