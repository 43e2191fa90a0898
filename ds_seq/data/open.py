"""Open the source of examples that a config names.

An external source is a callable with the signature of `open_shards` and any additional options:
`def open_corpus(folder, split, vocab_hash, **options) -> Source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ds_seq.data.fairseq import open_fairseq
from ds_seq.data.origin import Expected, check_origin
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import Source
from ds_seq.errors import UserError
from ds_seq.plugins import find_plugin


class SourceChoice(NamedTuple):
    """Name and options of a source in a config."""

    name: str
    """One of `SOURCES`, or `package.module:Name`."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the source."""


SHARDS = SourceChoice("shards")


def open_shards(folder: str | Path, split: str, vocab_hash: str | None = None) -> ShardReader:
    """Open the shards written by `ds-seq prepare`.

    Args:
        folder: folder of the shards.
        split: `train`, `valid` or `test`.
        vocab_hash: required fingerprint of the vocabulary of the shards; None allows any.

    Raises:
        UserError: the shards are missing or damaged, or belong to another vocabulary.
    """
    return ShardReader(folder, split, vocab_hash)


SOURCES: dict[str, Callable[..., Source]] = {"shards": open_shards, "fairseq": open_fairseq}


def open_source(
    choice: SourceChoice,
    folder: str | Path,
    split: str,
    vocab_hash: str,
    expected: Expected | None = None,
) -> Source:
    """Open the examples of a split.

    Args:
        choice: name and options of the source.
        folder: value of `data.dir`.
        split: `train`, `valid` or `test`.
        vocab_hash: required fingerprint of the vocabulary of the ids.
        expected: what our shards should have been made from; other sources record no origin.

    Raises:
        UserError: the source or its split does not exist, the vocabulary differs, or the shards
            were made from something else.
    """
    make = find_plugin("data.source", choice.name, SOURCES)
    source = make(folder, split, vocab_hash, **choice.options)
    if expected is not None and isinstance(source, ShardReader):
        check_origin(source.manifest, Path(folder), split, expected)
    if source.vocab_hash != vocab_hash:
        raise UserError(
            f"data.source: {choice.name} returned ids of vocabulary {source.vocab_hash[:12]} for "
            f"{split}, but the run has {vocab_hash[:12]}"
        )
    return source
