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
from ds_seq.text.forms import Sides
from ds_seq.text.lines import LineBlock, PairPath, open_bytes, read_blocks
from ds_seq.text.plan import has_places, plan_text


class Block(NamedTuple):
    """Consecutive pairs of one pair of files.

    Attributes:
        number: number of the block among those of all corpora.
        corpus: number of the corpus.
        input: number of the pair of files in the corpus.
        first_line: line (or segment) of the first pair in its files, from 1 on.
        first_pair: number of the first pair in the corpus, from 0 on.
        size: number of its pairs.
        sides: both sides, still as bytes and without line ends; None: they are in `extents`.
        extents: the first byte of each side in its file, and the byte behind its last one.
        scores: as many lines with a score; None without scores.
    """

    number: int
    corpus: int
    input: int
    first_line: int
    first_pair: int
    size: int
    sides: Sides | None
    extents: tuple[tuple[int, int], ...]
    scores: list[bytes] | None

    def content(self, path: PairPath) -> tuple[bytes, ...]:
        """Return the lines of each side, each with its line end, which the last one may lack.

        Args:
            path: its files.

        Raises:
            UserError: a file cannot be read, or has changed since the blocks were made.
        """
        if self.sides is not None:
            return tuple(b"\n".join([*side, b""]) for side in self.sides[: path.num_sides])
        found = []
        for file, (start, end) in zip(path, self.extents, strict=True):
            with open_bytes(file) as opened:
                opened.seek(start)
                content = opened.read(end - start)
            if len(content) != end - start or _num_lines(content) != self.size:
                raise UserError(f"{file}: has changed while it was read; start again")
            found.append(content)
        return tuple(found)


def _num_lines(content: bytes) -> int:
    return content.count(b"\n") + (not content.endswith(b"\n"))


def read_corpora(corpora: Sequence[Corpus], size: int) -> Iterator[Block]:
    """Yield the blocks of all corpora, of at most `size` pairs each.

    Of plain files, only the places of the blocks are found: whoever cleans a block reads it.

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
            in_file = _extents(path, size) if scores is None else None
            for block in _read(path, scores, size) if in_file is None else in_file:
                yield block._replace(
                    number=number, corpus=index, input=position, first_pair=first_pair
                )
                number += 1
                first_pair += block.size


def _extents(path: PairPath, size: int) -> Iterator[Block] | None:
    """Return the blocks of a pair of files by their places; None if only reading finds them."""
    if path.invalid != "keep" or not has_places(path):
        return None
    plan = plan_text(size, path)
    assert plan.offsets is not None
    offsets = plan.offsets
    return (
        Block(
            0, 0, 0, 1 + place * size, 0, min(size, plan.lines - place * size), None,
            tuple((side[place], side[place + 1]) for side in offsets), None,
        )
        for place in range(plan.num_parts)
    )  # fmt: skip


def _read(path: PairPath, scores: ScoreFile | None, size: int) -> Iterator[Block]:
    for lines, texts in _with_scores(path, scores, size):
        sides = (lines.source, lines.target)
        yield Block(0, 0, 0, lines.first_line, 0, len(lines.source), sides, (), texts)


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
