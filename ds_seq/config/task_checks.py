"""What a task asks of the other sections of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ds_seq.config.noise import T5Config
from ds_seq.config.task import (
    DenoisingConfig,
    LanguageModelingConfig,
    MaskedLanguageModelingConfig,
    NoisyTextFields,
    TaskConfig,
    TranslationConfig,
)
from ds_seq.names import (
    LM_METRICS,
    MASK_PIECE,
    SENTENCEPIECE,
    SENTINEL_PIECE,
    TEXT_METRICS,
    TOKEN_METRICS,
)
from ds_seq.plugins import nearest

if TYPE_CHECKING:
    from ds_seq.config.data import DataConfig
    from ds_seq.config.model import ModelConfig

Errors = Iterator[tuple[str, str]]
"""(dotted path, message)."""


def noise_errors(
    task: DenoisingConfig | MaskedLanguageModelingConfig, data: DataConfig, model: ModelConfig
) -> Errors:
    """Yield what a task with noise cannot do with the data and the model of an experiment."""
    if isinstance(task, MaskedLanguageModelingConfig):
        yield from _model_errors("encoder_only", model)
    else:
        yield from _model_errors("transformer", model)
    noise = task.noise if isinstance(task, DenoisingConfig) else None
    if data.vocab.name == SENTENCEPIECE:
        if isinstance(noise, T5Config):
            if data.vocab.sentinels < (noise.sentinels or 1):
                needs = f"needs symbols such as {SENTINEL_PIECE.format(0)}; set 100"
                message = f"{data.vocab.sentinels}, but the noise t5 {needs}"
                yield "data.vocab.sentinels", message
        elif not data.vocab.mask:
            yield "data.vocab.mask", f"false, but task {task.name} needs {MASK_PIECE}; set true"
    yield from _text_errors(task, data)


def _model_errors(wanted: str, model: ModelConfig) -> Errors:
    """Yield that a built-in model of another kind cannot learn a task."""
    if len(model.stacks) == (2 if wanted == "encoder_only" else 1):
        yield "model.name", f"{model.name} cannot learn this task; use {wanted}"
    elif model.stacks == ("decoder",):
        yield "model.name", f"{model.name} sees no token behind a hidden one; use {wanted}"


def _text_errors(task: NoisyTextFields, data: DataConfig) -> Errors:
    """Yield why the text cannot be taken from the data."""
    if data.language is not None:
        if task.side is not None:
            message = f"{task.side}, but data.language has text of one side; set it to null"
            yield "task.side", message
        return
    if task.side is None:
        message = "null, but the data has pairs; name the side to read: source, target or both"
        yield "task.side", message
    if not data.vocab.joint:
        message = "false, but both sides of this task are the same text; use one vocabulary"
        yield "data.vocab.joint", message
    if not data.has_plain_pairs:
        message = "cannot be read where data has corpora, tags or changes of pairs; remove them"
        yield "task.side", message
    if data.long_pairs != "skip":
        yield "data.long_pairs", "cuts pairs, which this task does not read; use skip"


def metric_errors(task: TaskConfig, names: Sequence[str]) -> Errors:
    """Yield which of the metrics of a validation a task does not have."""
    known: tuple[str, ...]
    if isinstance(task, TranslationConfig):
        known, more = TEXT_METRICS, ", or `package.module:Name`"
    elif isinstance(task, NoisyTextFields):
        known, more = tuple(TOKEN_METRICS), "; the task generates no text"
    elif isinstance(task, LanguageModelingConfig):
        known, more = LM_METRICS, "; the text is scored, and none generated"
    else:  # an external task may define its own
        return
    for name in names:
        if name not in known and not (known == TEXT_METRICS and ":" in name):
            there_are = f"there are {', '.join(known)}{more}"
            message = f"no metric {name!r}{nearest(name, known)}; {there_are}"
            yield "validation.metrics", message
