"""The corpora of a split while it is prepared: which pairs of its clean text are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_seq.config.data import DataConfig
from ds_seq.config.text_files import SplitConfig
from ds_seq.data.cleaning.build import build_corpus
from ds_seq.data.cleaning.options import Corpus
from ds_seq.data.expected import cleaning_by_corpus, files_of
from ds_seq.data.manifest import CorpusRecord
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath, read_blocks, text_fingerprint

TRAIN = "train"
_BLOCK = 10_000  # pairs read at a time


def named_texts(data: DataConfig, split: str) -> dict[str, SplitConfig]:
    """Return the texts of a split that its shards keep apart, by name."""
    if split == TRAIN:
        return dict(data.corpora)
    entries = [entry for _, entry in data.entries(split)]
    if len(entries) == 1 and not any(data.tags(entries[0])):
        return {}
    return {f"{split}-{number}": entry for number, entry in enumerate(entries, 1)}


def build_corpora(data: DataConfig, raw: Sequence[PairPath]) -> list[Corpus]:
    """Return the training text as cleaning reads it, with the options of each corpus.

    Args:
        data: the section.
        raw: all raw training text.

    Raises:
        UserError: a list of terms or patterns cannot be read.
    """
    if not data.corpora:
        return [build_corpus(TRAIN, raw, data.languages, data.clean)]
    return [
        build_corpus(
            name,
            files_of(data, TRAIN, corpus),
            corpus.pair(data.languages),
            data.clean,
            corpus.clean,
        )
        for name, corpus in data.corpora.items()
    ]


def inputs_of_cleaning(data: DataConfig, split: str) -> list[str]:
    """Return what clean text is made from besides the raw text.

    These are the fingerprints of files that cleaning reads, and the name, the languages and the
    number of files of each corpus.
    """
    if split != TRAIN:
        return []
    read = [
        text_fingerprint(Path(name))
        for clean in cleaning_by_corpus(data).values()
        for _, name in clean.named_files()
    ]
    corpora = [
        " ".join((name, *corpus.pair(data.languages), str(len(files_of(data, TRAIN, corpus)))))
        for name, corpus in data.corpora.items()
    ]
    return read + corpora


def count_each(data: DataConfig, split: str) -> dict[str, int]:
    """Return the number of pairs of each of `named_texts` of held-out text."""
    return {
        name: sum(len(block.source) for block in read_blocks(files_of(data, split, text), _BLOCK))
        for name, text in named_texts(data, split).items()
    }


def corpus_records(
    texts: Mapping[str, SplitConfig], sizes: Mapping[str, int], languages: tuple[str, str]
) -> tuple[CorpusRecord, ...]:
    """Return the records of the corpora of a split for its manifest.

    Args:
        texts: the texts by name, in order.
        sizes: number of pairs of each of them.
        languages: languages of texts that name none.

    Raises:
        UserError: a text has no pairs.
    """
    records, first = [], 0
    for name, text in texts.items():
        if sizes[name] == 0:
            raise UserError(
                f"corpus {name!r} is empty: there are no sentence pairs to write; check its text "
                "files and the limits of data.clean, or leave it out"
            )
        records.append(CorpusRecord(name, first, sizes[name], text.pair(languages)))
        first += sizes[name]
    return tuple(records)
