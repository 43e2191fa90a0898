"""Table of the tasks, by the `name` in their config.

A task is imported where it is built, because `ds_seq.tasks.prepare` runs without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ds_seq.config.base import ExternalConfig
from ds_seq.config.data import DataConfig, SourceConfig
from ds_seq.config.task import TaskConfig, TranslationConfig
from ds_seq.data.expected import expected_by_experiment, raw_files
from ds_seq.data.open import SourceChoice
from ds_seq.plugins import find_plugin
from ds_seq.text.build import load_tokenizers
from ds_seq.text.vocab_file import VOCAB_FILE

if TYPE_CHECKING:
    from ds_seq.tasks.base import Task

__all__ = ["TASKS", "build_task"]


def _translation(config: TranslationConfig, data: DataConfig) -> Task:
    from ds_seq.tasks.translation import TranslationTask

    splits = ("train", "valid", "test")
    return TranslationTask(
        data_dir=data.dir,
        tokenizers=load_tokenizers(data, f"{data.dir}/{VOCAB_FILE}"),
        raw={split: raw_files(data, split, must_exist=False) for split in splits},
        target_lang=data.target_lang,
        max_source_length=data.max_source_length,
        max_target_length=data.max_target_length,
        source=_source(data.source),
        expected={split: expected_by_experiment(data, split) for split in splits},
    )


def _source(config: SourceConfig) -> SourceChoice:
    if isinstance(config, ExternalConfig):
        return SourceChoice(config.name, config.options)
    return SourceChoice(config.name, config.model_dump(exclude={"name"}))


TASKS: dict[str, Callable[[Any, DataConfig], Task]] = {"translation": _translation}


def build_task(config: TaskConfig, data: DataConfig) -> Task:
    """Build the task that `config.name` names, built-in or an external `package.module:Name`.

    An external task is called with the data section and its options.
    """
    make = find_plugin("task", config.name, TASKS)
    if isinstance(config, ExternalConfig):
        task: Task = make(data, **config.options)  # type: ignore[call-arg, arg-type]
        return task
    return make(config, data)
