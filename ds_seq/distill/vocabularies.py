"""Labels for a student whose vocabulary is not that of its teacher.

The shards hold ids of the student. Their text is encoded again for the teacher, with what it puts
around a sentence, such as a language code, and its translations are encoded for the student.

Shapes: N sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.shards import ShardReader
from ds_seq.generation.output import plain_text
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizers

_AT_ONCE = 4096  # sentences that are encoded at a time


class Retokenized:
    """The text of a student's shards in the ids of a teacher, and its answers in the student's.

    Args:
        reader: the student's shards.
        teacher: tokenizers of the teacher.
        student: tokenizers of the shards.
        teacher_tags: language tags that the teacher reads at the start of a source.
    """

    def __init__(
        self,
        reader: ShardReader,
        teacher: Tokenizers,
        student: Tokenizers,
        teacher_tags: Sequence[str],
    ) -> None:
        self._reader, self._teacher, self.student = reader, teacher, student
        ids = sorted(student.source.tag_ids)
        pieces = dict(zip(ids, student.source.pieces(ids), strict=True))
        self.shared_tags = [token for token, piece in pieces.items() if piece in teacher_tags]
        self._left_out = frozenset(pieces).difference(self.shared_tags)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Lengths (N,) of the sources in the ids of the teacher."""
        symbols, lengths = self._teacher.source.symbols, np.zeros(len(self._reader), np.int64)
        around = len(symbols.framed([]))
        for start in range(0, len(lengths), _AT_ONCE):
            texts = list(self._texts(range(start, min(start + _AT_ONCE, len(lengths)))))
            encoded = self._teacher.source.encode_lines(texts)
            lengths[start : start + len(texts)] = [around + len(ids) for ids in encoded]
        return lengths

    def _texts(self, rows: range) -> Iterator[str]:
        tokenizer = self.student.source
        for row in rows:
            ids = tokenizer.symbols.unframed(self._reader[row][0].tolist())
            # a tag that the teacher does not know would be text to it
            yield tokenizer.decode(ids[1:] if ids[:1] and ids[0] in self._left_out else ids)

    def source(self, row: int) -> list[int]:
        """Return the ids of a source as the teacher reads it."""
        (text,) = self._texts(range(row, row + 1))
        tokenizer = self._teacher.source
        return tokenizer.symbols.framed(tokenizer.encode(text))

    def label(self, hypothesis: Hypothesis) -> Hypothesis:
        """Return a translation in the ids of the student; its score stays the teacher's."""
        text = plain_text(self._teacher.target, hypothesis.tokens)
        target = self.student.target
        tokens = [*target.symbols.opening, *target.encode(text)]
        return replace(hypothesis, tokens=tokens, token_scores=[], alignment=None)
