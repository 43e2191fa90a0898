"""Read the pairs of corpora in numbered blocks, with their scores.

The numbers depend on the text and the size of a block alone, never on who cleans it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from ds_seq.data.cleaning.options import Corpus, ScoreFile
from ds_seq.errors import UserError
from ds_seq.text.lines import LineBlock, PairPath, open_bytes, read_blocks


class Block(NamedTuple):
    """Consecutive pairs of one pair of files, still as bytes and without line ends.

    Attributes:
        number: number of the block among those of all corpora.
        corpus: number of the corpus.
        input: number of the pair of files in the corpus.
        first_line: line (or segment) of the first pair in its files, from 1 on.
        first_pair: number of the first pair in the corpus, from 0 on.
        source: lines of the source side.
        target: as many lines of the target side.
        scores: as many lines with a score; None without scores.
    """

    number: int
    corpus: int
    input: int
    first_line: int
    first_pair: int
    source: list[bytes]
    target: list[bytes]
    scores: list[bytes] | None


def read_corpora(corpora: Sequence[Corpus], size: int) -> Iterator[Block]:
    """Yield the blocks of all corpora, of at most `size` pairs each.

    Raises:
        UserError: a file is missing or damaged, the two sides or the scores have different numbers
            of lines.
    """
    number = 0
    for index, corpus in enumerate(corpora):
        check_scores(corpus)
        first_pair = 0
        for position, path in enumerate(corpus.inputs):
            scores = corpus.scores[position] if corpus.scores else None
            if path.invalid == "drop":  # what is dropped has a score, and is counted
                path = replace(path, invalid="keep")  # noqa: PLW2901
            for lines, texts in _with_scores(path, scores, size):
                yield Block(
                    number, index, position, lines.first_line, first_pair,
                    lines.source, lines.target, texts,
                )  # fmt: skip
                number += 1
                first_pair += len(lines.source)


def check_scores(corpus: Corpus) -> None:
    """Check that there is a file of scores for each pair of files, or none at all.

    Raises:
        UserError: there is another number of files, or a smallest score without scores.
    """
    if corpus.scores and len(corpus.scores) != len(corpus.inputs):
        raise UserError(
            f"score_files: {len(corpus.scores)} file(s) for the {len(corpus.inputs)} pair(s) of "
            f"files of the corpus {corpus.name}; give one for each, in the same order"
        )
    if corpus.options.min_score is not None and not corpus.scores:
        raise UserError(
            f"min_score: the corpus {corpus.name} has no scores; give its score_files, or leave "
            "min_score out"
        )


def _with_scores(
    path: PairPath, scores: ScoreFile | None, size: int
) -> Iterator[tuple[LineBlock, list[bytes] | None]]:
    blocks = read_blocks([path], size)
    if scores is None:
        yield from ((lines, None) for lines in blocks)
        return
    with open_bytes(scores.path, allowed=("table",)) as file:
        if scores.path in path.files:  # a column of the text itself, below the same header
            deque(islice(file, path.form.first - 1), maxlen=0)
        total = 0
        for lines in blocks:
            texts = list(islice(file, len(lines.source)))
            if len(texts) < len(lines.source):
                pairs = total + len(lines.source) + sum(len(more.source) for more in blocks)
                raise _other_length(scores, path, total + len(texts), pairs)
            total += len(texts)
            yield lines, texts
        if more := sum(1 for _ in file):
            raise _other_length(scores, path, total + more, total)


def _other_length(scores: ScoreFile, path: PairPath, lines: int, pairs: int) -> UserError:
    return UserError(
        f"{scores.path}: has {lines:,} lines, but {' and '.join(map(str, path.files))} "
        f"{'has' if len(path.files) == 1 else 'have'} {pairs:,} pairs; line n must be the score of "
        "pair n"
    )


def parse_score(line: bytes, file: ScoreFile, number: int) -> float:
    """Return the score of a line.

    Raises:
        UserError: there is none; names the file and the line.
    """
    text = line.rstrip(b"\r\n")
    if file.column is not None:
        columns = text.split(b"\t")
        if len(columns) < file.column:
            raise UserError(
                f"{file.path}: line {number} has no column {file.column} (score_column), but "
                f"{len(columns)}"
            )
        text = columns[file.column - 1]
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{file.path}: line {number}: {shown(text.decode(errors='replace'))} is no score; "
            "each line must hold a finite number"
            + ("" if file.column is not None else ", or give score_column")
        )
    return score


def shown(text: str, most: int = 60) -> str:
    """Return a text in quotes, shortened if it is long."""
    return repr(text if len(text) <= most else f"{text[:most]}...")
