"""The corpora of a data folder of pseudo-labels, so that a student can weight them.

The labels of a corpus keep its name. Original pairs that are added are a corpus of their own,
`NAME-original`. Where the old split has no names, the two are `pseudo` and `original`; without
original pairs, labels of a split without names have none either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.manifest import CorpusRecord, Manifest
from ds_seq.data.shards import ShardReader, ShardWriter
from ds_seq.data.source import untagged_rows
from ds_seq.runs.card import ModelCard

PSEUDO, ORIGINAL = "pseudo", "original"


class Names(NamedTuple):
    """Names of corpora of the new split, by their numbers in the old one.

    Attributes:
        old: corpora of the old split.
        labels: names of their labels.
        originals: names of their original pairs.
    """

    old: Sequence[CorpusRecord]
    labels: Sequence[str]
    originals: Sequence[str]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number (N,) of the corpus of each row (N,) of the old split."""
        ends = [corpus.rows.stop for corpus in self.old]
        return np.searchsorted(ends, rows, side="right").astype(np.int64)


def corpus_names(manifest: Manifest, has_originals: bool) -> Names | None:
    """Return the names of corpora of the new split, None if it has none.

    Args:
        manifest: manifest of the old split.
        has_originals: whether original pairs are added.
    """
    if not manifest.corpora:
        if not has_originals:
            return None
        whole = CorpusRecord(PSEUDO, 0, manifest.pairs, manifest.languages, manifest.inputs)
        return Names([whole], [PSEUDO], [ORIGINAL])
    labels = [corpus.name for corpus in manifest.corpora]
    originals = list[str]()
    for label in labels:
        name = f"{label}-{ORIGINAL}"
        while name in (*labels, *originals):
            name += f"-{ORIGINAL}"
        originals.append(name)
    return Names(manifest.corpora, labels, originals)


@dataclass
class CorpusMarks:
    """Begins the corpora of a split while its pairs are written.

    Attributes:
        writer: writes the split.
        names: the names of its corpora; None: it has none.
        are_originals: whether the pairs are original ones.
        begun: numbers of the corpora that have begun.
    """

    writer: ShardWriter
    names: Names | None
    are_originals: bool = False
    begun: Sequence[int] = ()

    def parts(self, rows: NDArray[np.int64]) -> Iterator[slice]:
        """Yield the parts of some rows of the old split, each after its corpus has begun.

        Args:
            rows: (N,) rows, those of a corpus together.
        """
        if self.names is None or len(rows) == 0:
            if len(rows):
                yield slice(0, len(rows))
            return
        numbers = self.names.of(rows)
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        for start, stop in pairwise(cuts):
            number = int(numbers[start])
            if number not in self.begun:
                old = self.names.old[number]
                names = self.names.originals if self.are_originals else self.names.labels
                self.writer.begin_corpus(names[number], old.languages, old.inputs)
                self.begun = (*self.begun, number)
            yield slice(start, stop)

    def without_pairs(self) -> list[str]:
        """Return the names of corpora of which no pair was written."""
        names = () if self.names is None else self.names.labels
        return [name for number, name in enumerate(names) if number not in self.begun]


def source_tags(
    reader: ShardReader, card: ModelCard, known: Collection[int] | None = None
) -> Mapping[range, int]:
    """Return the tag that a teacher needs before the sources of each corpus that has none.

    These are the tags that the training of the teacher has added, by the target language.

    Args:
        reader: the split.
        card: card of the teacher.
        known: ids of its tags in the vocabulary of the split; None: it is that of the teacher.

    Returns:
        Ids of tags by rows of the split.
    """
    manifest = reader.manifest
    whole = CorpusRecord(PSEUDO, 0, manifest.pairs, manifest.languages)
    tags: dict[range, int] = {}
    tag_ids = card.source_tags if known is None else known
    for corpus in manifest.corpora or (whole,):
        tag = card.tags_by_language.get(corpus.languages[1])
        if tag is None:
            continue
        untagged, size = untagged_rows(reader, tag_ids, corpus.rows)
        if len(untagged) == size:
            (tags[corpus.rows],) = card.tokenizers.source.encode(tag)
    return tags
