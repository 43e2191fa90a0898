"""Journals: files that record the results of a search as it runs, and survive an interruption.

A journal is a sequence of records, one per batch, in little-endian words of 32 bits::

    magic  n  h  t  checksum     sentences, hypotheses and tokens of the record; CRC-32 of the rest
    rows     (n)                 index of each sentence
    counts   (n)                 number of its hypotheses
    lengths  (h)                 tokens of each hypothesis, end symbol included
    scores   (h)                 float32
    tokens   (t)

After an interruption at most the last record is incomplete. Readers skip what is no whole record,
at the end or elsewhere, so that damage costs the work of one batch.

Shapes: N sentences, H hypotheses, L tokens of some hypotheses.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.shards import TokenBlock
from ds_seq.errors import UserError
from ds_seq.search.hypotheses import Hypothesis

_WORD = np.dtype("<u4")
_MAGIC = 0x4C50_5344
_HEADER = 5
_ADVICE = "stop that process first, or give another --out"

Words = NDArray[np.uint32]


class JournalWriter:
    """Appends to a journal that ends with a complete record or does not exist; see `repair`.

    A context manager. No other process can append while it is open.

    Args:
        path: the file.
        eos_id: end symbol, appended to each hypothesis.
    """

    def __init__(self, path: Path, eos_id: int) -> None:
        self._eos_id, self._path = eos_id, path
        self._lock = files.Lock(files.lock_of(path), path, _ADVICE)
        try:
            with files.writing(path):
                # unbuffered, so that nothing is left to be written after an error
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)
        except UserError:
            self._lock.release()
            raise

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._lock.release()

    def append(self, rows: NDArray[np.int64], results: Sequence[Sequence[Hypothesis]]) -> None:
        """Record the hypotheses of (N,) sentences, best first, in a single write.

        Raises:
            UserError: the journal cannot be written, for example because the disk is full.
        """
        hypotheses = [hypothesis for beam in results for hypothesis in beam]
        tokens = [token for h in hypotheses for token in (*h.tokens, self._eos_id)]
        body = np.concatenate(
            [
                rows.astype(_WORD),
                np.array([len(beam) for beam in results], _WORD),
                np.array([len(h.tokens) + 1 for h in hypotheses], _WORD),
                np.array([h.score for h in hypotheses], "<f4").view(_WORD),
                np.array(tokens, _WORD),
            ]
        ).tobytes()
        sizes = [_MAGIC, len(rows), len(hypotheses), len(tokens), zlib.crc32(body)]
        record = np.array(sizes, _WORD).tobytes() + body
        with files.writing(self._path):
            written = self._file.write(record)
            if written != len(record):  # a partial write
                self._file.write(record[written:])


class _Record(NamedTuple):
    """The fields of a record, as views of the file, and the position of its first token."""

    rows: Words
    counts: Words
    lengths: Words
    scores: NDArray[np.float32]
    first_token: int


class Labels(NamedTuple):
    """Hypotheses of many sentences, sorted by sentence, then best first."""

    rows: NDArray[np.int64]
    """(H,) index of its sentence."""
    scores: NDArray[np.float32]
    """(H,) `Hypothesis.score`."""
    lengths: NDArray[np.int32]
    """(H,) number of tokens, including the end symbol."""
    files: NDArray[np.int16]
    """(H,) index of the journal that holds its tokens."""
    starts: NDArray[np.int64]
    """(H,) position of its first token in that journal, in words."""

    def take(self, chosen: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Labels:
        """Return the selected hypotheses in the given order."""
        rows, scores, lengths, numbers, starts = self
        return Labels(
            rows[chosen], scores[chosen], lengths[chosen], numbers[chosen], starts[chosen]
        )


_NO_LABELS = Labels(
    np.zeros(0, np.int64),
    np.zeros(0, np.float32),
    np.zeros(0, np.int32),
    np.zeros(0, np.int16),
    np.zeros(0, np.int64),
)


class Journals:
    """Several memory-mapped journals; metadata of hypotheses is in memory, tokens stay on disk.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._words = [_map(path) for path in paths]

    def sentences(self) -> NDArray[np.int64]:
        """Return the indices of all searched sentences, in any order."""
        rows = [record.rows for words in self._words for record in _records(words)]
        return np.concatenate([np.zeros(0, _WORD), *rows]).astype(np.int64)

    def labels(self) -> Labels:
        """Return all hypotheses."""
        parts = [_NO_LABELS]
        for number, words in enumerate(self._words):
            parts += [_labels(record, number) for record in _records(words)]
        labels = Labels(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.files for part in parts]),
            np.concatenate([part.starts for part in parts]),
        )
        return labels.take(np.argsort(labels.rows, kind="stable"))

    def gather(self, labels: Labels) -> TokenBlock:
        """Copy the tokens of some hypotheses, including end symbols."""
        lengths = labels.lengths.astype(np.int64)
        ends = np.cumsum(lengths)
        starts = np.repeat(labels.starts - ends + lengths, lengths)
        places = starts + np.arange(len(starts))  # (L,)
        journals = np.repeat(labels.files, lengths)
        tokens = np.empty(len(places), _WORD)
        for number in np.unique(labels.files):
            here = journals == number
            tokens[here] = self._words[number][places[here]]
        return TokenBlock(tokens, lengths)


def repair(path: Path) -> None:
    """Truncate a journal after its last whole record.

    Raises:
        UserError: another process is still writing to the journal.
    """
    words = _map(path)
    end = 0
    for record in _records(words):
        end = record.first_token + int(record.lengths.sum())
    with files.Lock(files.lock_of(path), path, _ADVICE), open(path, "r+b") as file:
        file.truncate(end * _WORD.itemsize)


def _map(path: Path) -> Words:
    size = path.stat().st_size // _WORD.itemsize
    return np.memmap(path, _WORD, "r", shape=(size,)) if size else np.zeros(0, _WORD)


def _records(words: Words) -> Iterator[_Record]:
    """Yield the whole records of a journal."""
    start = 0
    while start + _HEADER <= len(words):
        if (record := _record_at(words, start)) is not None:
            yield record
            start = record.first_token + int(record.lengths.sum())
            continue
        later = np.flatnonzero(words[start + 1 :] == _MAGIC)
        if len(later) == 0:
            return
        start += 1 + int(later[0])


def _record_at(words: Words, start: int) -> _Record | None:
    """Return the record that begins at a position, or None if there is none or it is damaged."""
    magic, n, h, t, checksum = (int(word) for word in words[start : start + _HEADER])
    cuts = np.cumsum([start + _HEADER, n, n, h, h, t])
    body = words[cuts[0] : cuts[-1]]
    if magic != _MAGIC or cuts[-1] > len(words) or zlib.crc32(body.data) != checksum:
        return None
    rows, counts, lengths, scores = (words[a:b] for a, b in zip(cuts, cuts[1:5], strict=False))
    sizes = (int(counts.sum(dtype=np.int64)), int(lengths.sum(dtype=np.int64)))
    if sizes != (h, t) or (lengths == 0).any():
        return None
    return _Record(rows, counts, lengths, scores.view("<f4"), int(cuts[4]))


def _labels(record: _Record, file: int) -> Labels:
    """Return the hypotheses of a record, in the order of the record."""
    lengths = record.lengths.astype(np.int32)
    starts = record.first_token + np.cumsum(lengths, dtype=np.int64) - lengths
    return Labels(
        np.repeat(record.rows.astype(np.int64), record.counts),
        record.scores,
        lengths,
        np.full(len(lengths), file, np.int16),
        starts,
    )
