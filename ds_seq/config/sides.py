"""Text of one side or two: what a task, its data and its model must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ds_seq.config.data import DataConfig
from ds_seq.config.task import BlockFields, LanguageModelingConfig, TaskConfig, TranslationConfig
from ds_seq.names import PERPLEXITY

if TYPE_CHECKING:
    from ds_seq.config.experiment import ExperimentConfig

_SCORED = ("language_modeling", "masked_language_modeling", "denoising")
"""Tasks that are evaluated by the probabilities of given tokens."""


def with_defaults_of_task(data: dict[str, Any]) -> dict[str, Any]:
    """Return a raw experiment with a perplexity as the metric if its task generates no text.

    Args:
        data: the experiment, not modified; it may be invalid.
    """
    task, validation = data.get("task"), data.get("validation", {})
    if not isinstance(task, Mapping) or task.get("name") not in _SCORED:
        return data
    if not isinstance(validation, Mapping):
        return data
    metrics = validation.get("metrics", [PERPLEXITY])
    best = PERPLEXITY if metrics == [PERPLEXITY] else "loss"
    return {**data, "validation": {"metrics": metrics, "best": best, **validation}}


def longest_examples(task: TaskConfig, data: DataConfig) -> dict[str, int]:
    """Return the options that bound the lengths of examples, with their values."""
    if isinstance(task, BlockFields) and data.language is not None:
        return {"task.block_tokens": task.block_tokens}
    return {
        "data.max_source_length": data.max_source_length,
        "data.max_target_length": data.max_target_length,
    }


def side_errors(config: ExperimentConfig) -> list[tuple[str, str]]:
    """Return what does not fit a task as (dotted path, message) pairs."""
    return list(_side_errors(config))


def _side_errors(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    task, model, data = config.task, config.model, config.data
    reads_text = len(model.stacks) == 1
    if isinstance(task, TranslationConfig):
        if data.language is not None:
            message = "translation needs pairs; give source_lang and target_lang, or set task: "
            yield "data.language", message + "{name: language_modeling}"
        if reads_text:
            own = ("masked_" if model.stacks == ("encoder",) else "") + "language_modeling"
            message = f"{model.name} has no source; use transformer, or set task: {{name: {own}}}"
            yield "model.name", message
    if isinstance(task, LanguageModelingConfig):
        if data.language is None:
            message = "missing: task language_modeling reads text of one side; give its language "
            yield "data.language", message + "instead of source_lang and target_lang"
        if not reads_text and ":" not in model.name:  # one from outside may read text
            message = f"{model.name} has a source; a language model is decoder_only, recurrent_lm "
            yield "model.name", f"{message}or convolutional_lm"
        if model.name == "encoder_only":
            message = "encoder_only sees the tokens to predict; use decoder_only, or set task: "
            yield "model.name", message + "{name: masked_language_modeling}"
