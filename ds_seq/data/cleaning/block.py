"""Clean one block: what processes run."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from ds_seq.data.cleaning.blocks import Block, parse_score
from ds_seq.data.cleaning.options import SCORE, Corpus, reason_to_drop
from ds_seq.data.cleaning.report import Example, Examples
from ds_seq.environment import collector_paused
from ds_seq.names import DuplicateKey

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
        UserError: a score cannot be read.
    """
    corpus = corpora[block.corpus]
    options = corpus.options
    normalize, repairs = options.normalizer, options.repairs
    dropped: Counter[str] = Counter()
    examples = Examples()
    lines: list[int] = []
    scores: list[float] = []
    sources: list[str] = []
    targets: list[str] = []
    first_score = _first_score(corpus, block)
    for index, raw in enumerate(zip(block.source, block.target, strict=True)):
        reason = None
        score = 0.0
        if block.scores is not None:
            file = corpus.scores[block.input]
            score = parse_score(block.scores[index], file, first_score + index)
        try:
            source, target = raw[0].decode("utf-8"), raw[1].decode("utf-8")
        except UnicodeDecodeError:
            reason = "invalid_utf8"
        else:
            for repair in repairs:
                source, target = repair(source), repair(target)
            source, target = normalize(source), normalize(target)
            if options.min_score is not None and score < options.min_score and source and target:
                reason = SCORE
            else:
                reason = reason_to_drop(source, target, options)
        if reason is None:
            lines.append(index)
            scores.append(score)
            sources.append(source)
            targets.append(target)
            continue
        dropped[reason] += 1
        if reason in ("invalid_utf8", "empty"):  # show what it was
            source, target = (side.decode("utf-8", "replace") for side in raw)
        where = (block.input, block.first_line + index)
        example = Example.of(block.corpus, block.first_pair + index, where, (source, target))
        examples.add(reason, example)
    keys = [rule.key for rule in options.duplicate_rules]
    columns = pack_columns(
        lines,
        None if block.scores is None else scores,
        [hashes(sources, targets, key) for key in dict.fromkeys(keys)],
    )
    place = (block.input, block.first_line, block.first_pair)
    return Cleaned(
        block.number, block.corpus, place, len(block.source), dict(dropped), examples,
        _text(sources), _text(targets), columns,
    )  # fmt: skip


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def pack_columns(
    lines: Sequence[int], scores: Sequence[float] | None, hashes: Sequence[bytes]
) -> bytes:
    """Return what is known of the pairs (N,) of a block besides their text.

    Args:
        lines: place of each pair in its block.
        scores: score of each pair, if there are any.
        hashes: for each kind of key, the hashes of 8 bytes of all pairs.
    """
    parts = [np.array(lines, np.uint32).tobytes(), *hashes]
    if scores is not None:
        parts.append(np.array(scores, np.float64).tobytes())
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
