"""Put the finished blocks together: without pairs that repeat others, in the order of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.cleaning.duplicates import Entries, RowSet, entries, find_repeated
from ds_seq.data.cleaning.journal import Entry, Finished, read_parts
from ds_seq.data.cleaning.options import Corpus, DuplicateRule
from ds_seq.data.cleaning.report import CleanReport, CorpusReport, Example, Examples
from ds_seq.names import DuplicateKey

PLACE = np.dtype([("text", "<u4"), ("line", "<u8")])
"""Where a pair was: number of its pair of files, of all corpora together, and line, from 1 on."""


class _Columns(NamedTuple):
    """What is known of the pairs (N,) of a block besides their text; see `pack_columns`."""

    lines: NDArray[np.uint32]
    hashes: dict[DuplicateKey, NDArray[np.uint64]]
    scores: NDArray[np.float64] | None

    @classmethod
    def of(cls, corpus: Corpus, content: bytes, size: int) -> _Columns:
        """Unpack the columns of `size` pairs of a corpus."""
        keys = dict.fromkeys(rule.key for rule in corpus.options.duplicate_rules)
        lines = np.frombuffer(content, np.uint32, size)
        place = lines.nbytes
        hashes = {}
        for key in keys:
            hashes[key] = np.frombuffer(content, np.uint64, size, place)
            place += hashes[key].nbytes
        scores = np.frombuffer(content, np.float64, size, place) if corpus.scores else None
        return cls(lines, hashes, scores)


def assemble(
    folder: Path,
    corpora: Sequence[Corpus],
    finished: Finished,
    write: Callable[[bytes, bytes, NDArray[np.void]], None],
) -> CleanReport:
    """Write the text of all blocks without repeated pairs.

    Args:
        folder: folder of the unfinished work.
        corpora: the corpora.
        finished: all of their blocks.
        write: called with the source and the target side of each block, and the `PLACE` of each
            pair.
    """
    blocks = [finished.entries[number] for number in sorted(finished.entries)]
    repeated = _find_all(folder, corpora, blocks)
    reports = [
        CorpusReport(
            corpus.name,
            [(str(path.source), str(path.target)) for path in corpus.inputs],
            units=[path.form.unit for path in corpus.inputs],
            dropped=dict.fromkeys(corpus.options.reasons, 0),
            examples=finished.examples.get(number, Examples()),
        )
        for number, corpus in enumerate(corpora)
    ]
    first_row = 0
    first_texts = list(accumulate((len(corpus.inputs) for corpus in corpora), initial=0))
    for block, source, target, content in read_parts(folder, blocks, text=True):
        corpus, report = corpora[block.corpus], reports[block.corpus]
        report.total += block.total
        for reason, number in block.dropped.items():
            report.dropped[reason] += number
        keep = np.ones(block.kept, bool)
        for rule in corpus.options.duplicate_rules:
            again = repeated[rule].between(first_row, first_row + block.kept)
            report.dropped[rule.reason] += int(np.count_nonzero(again))
            keep &= ~again
            if again.any():
                lines = _Columns.of(corpus, content, block.kept).lines
                _add_examples(report.examples, rule.reason, block, lines, again, (source, target))
        places = np.empty(int(np.count_nonzero(keep)), PLACE)
        places["text"] = first_texts[block.corpus] + block.input
        places["line"] = block.first_line + _Columns.of(corpus, content, block.kept).lines[keep]
        write(_lines(source, keep), _lines(target, keep), places)
        first_row += block.kept
    return CleanReport.of(reports)


def _lines(text: bytes, keep: NDArray[np.bool_]) -> bytes:
    """Return the lines that are kept, each with its line end."""
    if keep.all():
        return text
    return b"".join(compress(text.splitlines(keepends=True), keep.tolist()))


def _add_examples(
    examples: Examples,
    reason: str,
    block: Entry,
    lines: NDArray[np.uint32],
    again: NDArray[np.bool_],
    text: tuple[bytes, bytes],
) -> None:
    source, target = (side.splitlines() for side in text)
    target = target or source  # text of one side
    for index in np.flatnonzero(again).tolist():
        line = int(lines[index])
        where = (block.input, block.first_line + line)
        sides = (source[index].decode(), target[index].decode())
        examples.add(reason, Example.of(block.corpus, block.first_pair + line, where, sides))


def _find_all(
    folder: Path, corpora: Sequence[Corpus], blocks: Sequence[Entry]
) -> dict[DuplicateRule, RowSet]:
    """Return the rows of the pairs that each rule drops.

    Corpora with the same rule compete with each other. A rule does not see pairs that an earlier
    one has dropped.
    """
    rules = dict.fromkeys(rule for corpus in corpora for rule in corpus.options.duplicate_rules)
    size = sum(block.kept for block in blocks)
    repeated: dict[DuplicateRule, RowSet] = {}
    for rule in rules:
        rows = RowSet(size)
        parts = _entries(folder, corpora, blocks, rule, list(repeated.values()))
        for found in find_repeated(parts, size, rule.most, folder / "hashes"):
            rows.add(found)
        repeated[rule] = rows
    return repeated


def _entries(
    folder: Path,
    corpora: Sequence[Corpus],
    blocks: Sequence[Entry],
    rule: DuplicateRule,
    dropped: Sequence[RowSet],
) -> Iterator[Entries]:
    first_rows = accumulate((block.kept for block in blocks), initial=0)
    places = {block.number: row for block, row in zip(blocks, first_rows, strict=False)}
    mine = [block for block in blocks if rule in corpora[block.corpus].options.duplicate_rules]
    for block, _, _, content in read_parts(folder, mine, text=False):
        first = places[block.number]
        columns = _Columns.of(corpora[block.corpus], content, block.kept)
        found = entries(first, columns.hashes[rule.key], columns.scores)
        for rows in dropped:
            found = found[~rows.between(first, first + block.kept)[found["row"] - np.uint64(first)]]
        yield found
