"""Opens the source of examples that a config names.

A source from outside ds_seq is a callable with the signature of `open_shards` and any options of
its own: `def open_corpus(folder, split, vocab_hash, **options) -> Source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ds_seq.data.shards import ShardReader
from ds_seq.data.source import Source
from ds_seq.errors import UserError
from ds_seq.plugins import find_plugin


class SourceChoice(NamedTuple):
    """Which source, as a config names it."""

    name: str
    """One of `SOURCES`, or `package.module:Name`."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of its own."""


SHARDS = SourceChoice("shards")


def open_shards(folder: str | Path, split: str, vocab_hash: str | None = None) -> Source:
    """Return the shards that `ds-seq prepare` has written.

    Args:
        folder: where they lie.
        split: `train`, `valid` or `test`.
        vocab_hash: fingerprint of the vocabulary that they must have been made with; None = any.

    Raises:
        UserError: they are missing, damaged, or of another vocabulary.
    """
    return ShardReader(folder, split, vocab_hash)


SOURCES: dict[str, Callable[..., Source]] = {"shards": open_shards}


def open_source(choice: SourceChoice, folder: str | Path, split: str, vocab_hash: str) -> Source:
    """Return the examples of a split.

    Args:
        choice: which source.
        folder: `data.dir`.
        split: `train`, `valid` or `test`.
        vocab_hash: fingerprint of the vocabulary that the ids must belong to.

    Raises:
        UserError: there is no such source, or it has no such split or another vocabulary.
    """
    make = find_plugin("data.source", choice.name, SOURCES)
    source = make(folder, split, vocab_hash, **choice.options)
    if source.vocab_hash != vocab_hash:
        raise UserError(
            f"data.source: {choice.name} gave ids of vocabulary {source.vocab_hash[:12]} for "
            f"{split}, but the run has {vocab_hash[:12]}"
        )
    return source
