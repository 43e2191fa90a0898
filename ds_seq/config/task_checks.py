"""What a task asks of the other sections of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ds_seq.config.noise import T5Config
from ds_seq.config.task import (
    DenoisingConfig,
    LanguageModelingConfig,
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

Errors = Iterator[tuple[str, str]]
"""(dotted path, message)."""


def denoising_errors(task: DenoisingConfig, data: DataConfig) -> Errors:
    """Yield what denoising cannot do with the data of an experiment."""
    noise, vocab = task.noise, data.vocab
    is_ours = vocab.name == SENTENCEPIECE
    if isinstance(noise, T5Config):
        if is_ours and vocab.sentinels < (noise.sentinels or 1):
            first = SENTINEL_PIECE.format(0)
            message = f"{vocab.sentinels}, but the noise t5 needs symbols such as {first}; set 100"
            yield "data.vocab.sentinels", message
    elif is_ours and not vocab.mask:
        yield "data.vocab.mask", f"false, but the noise {noise.name} needs {MASK_PIECE}; set true"
    yield from text_errors(data, task.side is None)


def text_errors(data: DataConfig, is_one_sided: bool) -> Errors:
    """Yield why the text of one side cannot be taken from the data.

    Args:
        data: the section.
        is_one_sided: whether the task expects text of one side.
    """
    if is_one_sided:
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
    elif isinstance(task, DenoisingConfig):
        known, more = tuple(TOKEN_METRICS), f"; task {task.name} generates no text"
    elif isinstance(task, LanguageModelingConfig):
        known, more = LM_METRICS, "; the text is scored, and none generated"
    else:  # an external task may define its own
        return
    for name in names:
        if name not in known and not (known == TEXT_METRICS and ":" in name):
            there_are = f"there are {', '.join(known)}{more}"
            message = f"no metric {name!r}{nearest(name, known)}; {there_are}"
            yield "validation.metrics", message
