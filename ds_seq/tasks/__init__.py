"""Tasks, by the `name` that tags their config, and the search that a config describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_seq.config.base import ExternalConfig
from ds_seq.config.data import DataConfig, SourceConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.task import TaskConfig, TranslationConfig
from ds_seq.data.open import SourceChoice
from ds_seq.generation.translate import BatchLimits
from ds_seq.plugins import find_plugin
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.diversity import DiverseGroups, DiverseSiblings
from ds_seq.search.guides import Plain, SelectionMaker
from ds_seq.search.sampling import Sampling
from ds_seq.tasks.base import Task
from ds_seq.tasks.translation import RawSplit, TranslationTask
from ds_seq.text.build import load_tokenizers
from ds_seq.text.tokenizer import Symbols
from ds_seq.text.vocab_file import VOCAB_FILE

__all__ = ["TASKS", "Task", "TranslationTask", "build_limits", "build_search", "build_task"]


def _translation(config: TranslationConfig, data: DataConfig) -> Task:
    raw = {"train": data.raw.train, "valid": data.raw.valid, "test": data.raw.test}
    return TranslationTask(
        data_dir=data.dir,
        tokenizers=load_tokenizers(data, f"{data.dir}/{VOCAB_FILE}"),
        raw={
            split: [RawSplit(pair.source, pair.target) for pair in pairs]
            for split, pairs in raw.items()
        },
        target_lang=data.target_lang,
        max_source_length=data.max_source_length,
        max_target_length=data.max_target_length,
        source=_source(data.source),
    )


def _source(config: SourceConfig) -> SourceChoice:
    if isinstance(config, ExternalConfig):
        return SourceChoice(config.name, config.options)
    return SourceChoice(config.name, config.model_dump(exclude={"name"}))


TASKS: dict[str, Callable[[Any, DataConfig], Task]] = {"translation": _translation}


def build_task(config: TaskConfig, data: DataConfig) -> Task:
    """Make the task that ``config.name`` names, ours or an external ``package.module:Name``.

    An external one is called with the data section and its own options.
    """
    make = find_plugin("task", config.name, TASKS)
    if isinstance(config, ExternalConfig):
        task: Task = make(data, **config.options)  # type: ignore[call-arg, arg-type]
        return task
    return make(config, data)


def build_search(config: GenerationConfig, symbols: Symbols, max_positions: int) -> BeamSearch:
    """The search that a config describes.

    Args:
        config: the section `generation`.
        symbols: of the target.
        max_positions: tokens that the decoder can take.
    """
    sampling = Sampling(
        top_k=config.sampling_top_k,
        top_p=config.sampling_top_p,
        epsilon=config.sampling_epsilon,
        seed=config.seed,
    )
    return BeamSearch(
        symbols=symbols,
        beam=config.beam,
        length_penalty=config.length_penalty,
        length_penalty_form=config.length_penalty_form,
        unk_penalty=config.unk_penalty,
        temperature=config.temperature,
        max_len_a=config.max_len_a,
        max_len_b=config.max_len_b,
        min_len=config.min_len,
        no_repeat_ngram=config.no_repeat_ngram,
        sampling=sampling if config.sampling else None,
        selection=_build_selection(config, symbols.eos),
        max_positions=max_positions,
    )


def _build_selection(config: GenerationConfig, end: int) -> SelectionMaker:
    if config.diverse_groups > 1:
        return DiverseGroups(config.diverse_groups, config.diverse_strength, end)
    return DiverseSiblings(config.diverse_siblings) if config.diverse_siblings > 0 else Plain()


def build_limits(config: GenerationConfig, max_positions: int) -> BatchLimits:
    """The batches that a config describes, for an encoder of at most ``max_positions`` tokens."""
    return BatchLimits(config.max_tokens, config.max_sentences, max_positions)
