"""Clean one block: what processes run."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.cleaning.blocks import Block, parse_score
from ds_seq.data.cleaning.options import (
    SCORE,
    CleanOptions,
    Corpus,
    is_below,
    may_be_dropped,
    reason_to_drop,
)
from ds_seq.data.cleaning.report import Example, Examples
from ds_seq.environment import collector_paused
from ds_seq.names import DuplicateKey
from ds_seq.text.look import Look, look_at_lines
from ds_seq.text.plan import split_lines

_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
_DIGIT = re.compile(r"\d")


class Cleaned(NamedTuple):
    """A clean block.

    Attributes:
        number: number of the block.
        corpus: number of its corpus.
        place: number of its pair of files in the corpus, line of its first pair there, from 1 on,
            and number of this pair in the corpus, from 0 on.
        total: number of its pairs.
        dropped: number of dropped pairs by reason.
        examples: some dropped pairs by reason.
        source: the source side of the other pairs, as it is written.
        target: their target side.
        columns: what else is known of them, see `pack_columns`.
    """

    number: int
    corpus: int
    place: tuple[int, int, int]
    total: int
    dropped: dict[str, int]
    examples: Examples
    source: bytes
    target: bytes
    columns: bytes

    @property
    def kept(self) -> int:
        """Number of pairs that are left."""
        return self.total - sum(self.dropped.values())


def load_filters(corpora: Sequence[Corpus]) -> None:
    """Load what the filters of all corpora need, once in each process."""
    for corpus in corpora:
        corpus.options.load()


def _first_score(corpus: Corpus, block: Block) -> int:
    """Return the number of the line with the first score: a header is no pair, and has no score."""
    text = corpus.inputs[block.input]
    is_in_text = bool(corpus.scores) and corpus.scores[block.input].path in text.files
    return block.first_line - (0 if is_in_text else text.form.first - 1)


@collector_paused()
def clean_block(corpora: Sequence[Corpus], block: Block) -> Cleaned:
    """Normalize and filter the pairs of a block.

    Raises:
        UserError: a score cannot be read, or the text has changed meanwhile.
    """
    corpus = corpora[block.corpus]
    options = corpus.options
    content = block.content(corpus.inputs[block.input])
    is_text = len(content) == 1
    decoded = [_decode(side) for side in content]
    looks = [_normalized(side, options) for side in decoded]
    # text of one side passes the filters as a pair of equal sides
    (sources, source_look), (targets, target_look) = looks[0], looks[-1]
    scores = _scores(corpus, block)
    invalid = decoded[0].invalid | decoded[-1].invalid
    dropped: Counter[str] = Counter()
    examples = Examples()
    keep = np.ones(block.size, bool)
    suspects = may_be_dropped(sources, targets, options, (source_look, target_look))
    if scores is not None and options.min_score is not None:
        suspects |= scores < options.min_score
    suspects[list(invalid)] = True
    for index in np.flatnonzero(suspects).tolist():
        pair = (sources[index], targets[index])
        if index in invalid:
            reason: str | None = "invalid_utf8"
        elif is_text and not pair[0]:  # the end of a document
            reason = None
        elif scores is not None and is_below(scores[index], options) and all(pair):
            reason = SCORE
        else:
            reason = reason_to_drop(*pair, options)
        if reason is None:
            continue
        keep[index] = False
        dropped[reason] += 1
        if reason in ("invalid_utf8", "empty"):  # show what it was
            pair = (decoded[0].raw(index), decoded[-1].raw(index))
        where = (block.input, block.first_line + index)
        examples.add(reason, Example.of(block.corpus, block.first_pair + index, where, pair))
    if dropped:
        chosen = keep.tolist()
        sources, targets = (list(compress(side, chosen)) for side in (sources, targets))
    kept = np.flatnonzero(keep)
    keyed = _keyed(sources, block.first_pair + kept) if is_text else sources
    columns = pack_columns(
        kept,
        None if scores is None else scores[keep],
        [hashes(keyed, keyed if is_text else targets, key) for key in _keys(options)],
    )
    place = (block.input, block.first_line, block.first_pair)
    return Cleaned(
        block.number, block.corpus, place, block.size, dict(dropped), examples,
        _text(sources), b"" if is_text else _text(targets), columns,
    )  # fmt: skip


def _keyed(lines: Sequence[str], places: NDArray[np.integer]) -> list[str]:
    """Return lines by which duplicates are found: the end of a document is no duplicate."""
    return [line or f"\n{place}" for line, place in zip(lines, places.tolist(), strict=True)]


class _Side:
    """A side of a block.

    Attributes:
        lines: its lines; empty where they are not UTF-8.
        invalid: places of these.
    """

    def __init__(self, content: bytes, lines: list[str], invalid: set[int]) -> None:
        self._content = content
        self.lines, self.invalid = lines, invalid

    def raw(self, index: int) -> str:
        """Return a line as it is in the file, as far as it is UTF-8."""
        return self._content.split(b"\n")[index].rstrip(b"\r").decode("utf-8", "replace")


def _decode(content: bytes) -> _Side:
    try:
        return _Side(content, split_lines(content.decode("utf-8")), set())
    except UnicodeDecodeError:
        pass
    lines, invalid = [], set()
    for index, line in enumerate(content.removesuffix(b"\n").split(b"\n")):
        try:
            lines.append(line.rstrip(b"\r").decode("utf-8"))
        except UnicodeDecodeError:
            lines.append("")
            invalid.add(index)
    return _Side(content, lines, invalid)


def _normalized(side: _Side, options: CleanOptions) -> tuple[list[str], Look | None]:
    """Return the normalized lines of a side, and what they are made of if it has been looked at."""
    lines = side.lines
    for repair in options.repairs:
        lines = list(map(repair, lines))
    if not options.normalizer.keeps_ordinary_lines:
        return options.normalizer.lines(lines), None
    look = look_at_lines(lines)
    return options.normalizer.lines(lines, look), look


def _scores(corpus: Corpus, block: Block) -> NDArray[np.float64] | None:
    if block.scores is None:
        return None
    file, first = corpus.scores[block.input], _first_score(corpus, block)
    return np.array([parse_score(line, file, n) for n, line in enumerate(block.scores, first)])


def _keys(options: CleanOptions) -> list[DuplicateKey]:
    return list(dict.fromkeys(rule.key for rule in options.duplicate_rules))


def _text(lines: Sequence[str]) -> bytes:
    return "\n".join([*lines, ""]).encode()


def pack_columns(
    lines: NDArray[np.integer], scores: NDArray[np.float64] | None, hashes: Sequence[bytes]
) -> bytes:
    """Return what is known of the pairs (N,) of a block besides their text.

    Args:
        lines: place of each pair in its block.
        scores: score of each pair, if there are any.
        hashes: for each kind of key, the hashes of 8 bytes of all pairs.
    """
    parts = [lines.astype(np.uint32).tobytes(), *hashes]
    if scores is not None:
        parts.append(scores.tobytes())
    return b"".join(parts)


def hashes(sources: Sequence[str], targets: Sequence[str], key: DuplicateKey) -> bytes:
    """Return a hash of 8 bytes of the key of each pair.

    Among corpora of 100 million different pairs, about one in 4,000 loses a pair to a collision.
    """
    form, _, side = key.rpartition("_")
    if form:
        sources, targets = _skeletons(sources, side), _skeletons(targets, side)
    if side == "pair":
        texts = [f"{pair[0]}\n{pair[1]}" for pair in zip(sources, targets, strict=True)]
    else:
        texts = list(sources if side == "source" else targets)
    return b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts])


def _skeletons(texts: Sequence[str], side: str) -> list[str]:
    return [normalized_key(text) for text in texts]


def normalized_key(text: str) -> str:
    """Return a text without case, punctuation and spaces; all digits count as 0.

    A text of nothing else stays as it is.
    """
    letters = unicodedata.normalize("NFKC", text).casefold()
    return _DIGIT.sub("0", _NO_LETTER_OR_DIGIT.sub("", letters)) or text
