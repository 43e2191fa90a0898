"""Translations as text: one line each, or with scores and alternatives for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ds_seq.generation.words import (
    pharaoh,
    plain_line,
    replace_unknown,
    source_words,
    target_words,
    word_pairs,
)
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

OutputFormat = Literal["text", "tsv", "jsonl", "fairseq"]
FORMATS: tuple[str, ...] = get_args(OutputFormat)

_LN_2 = np.float32(math.log(2))


@dataclass(frozen=True)
class LineWriter:
    """Writes what was found for one line of the input.

    ``text``: the best translation.
    ``tsv``: a line for each hypothesis: number of the input line from 1, score, text, and the
    alignment of its words if there is one.
    ``jsonl``: one object: ``line`` from 1, ``source``, and ``hypotheses`` with ``text``, ``score``
    and ``token_scores``, the end symbol's last, natural logarithms; where there are any,
    ``alignment`` of words and ``utility``.
    ``fairseq``: what ``fairseq-generate`` prints, in input order: S- and T-lines with the pieces of
    source and reference, then for each hypothesis an H-line with score and pieces, a D-line with
    score and plain text, a P-line with the scores of the pieces and of the end symbol, and, if
    asked for, an A-line with the alignment of the pieces; counted from 0, logarithms to base 2 (Ott
    et al., 2019, "fairseq: A Fast, Extensible Toolkit for Sequence Modeling").

    Alignments are pairs ``source-target`` counted from 0. Those of words mean the words between
    spaces of ``source`` and of the text that is written.

    A line without text has one empty hypothesis of score 0 in every format.

    Attributes:
        form: one of the above.
        tokenizers: make text and pieces of ids.
        source: lines of the input, normalized.
        reference: their translations, normalized, where there are any.
        first: number of the first of these lines in the whole input, from 0.
        align: whether alignments are written; hypotheses have them then.
        replace_unk: whether unknown pieces of the text give way to what they look at; see
            `replace_unknown`. Hypotheses have alignments then. Pieces stay as they are.
    """

    form: OutputFormat
    tokenizers: Tokenizers
    source: Sequence[str]
    reference: Sequence[str] | None = None
    first: int = 0
    align: bool = False
    replace_unk: bool = False

    def __call__(self, line: int, hypotheses: Sequence[Hypothesis]) -> str:
        """The output, one line or several of them joined by ``\\n``.

        Args:
            line: number of the line in the whole input, from 0.
            hypotheses: at least one, the best first.
        """
        if self.form == "text":
            return self.text(line, hypotheses[0])
        if self.form == "jsonl":
            return self._json(line, hypotheses)
        rows = self._table(line, hypotheses) if self.form == "tsv" else self._rows(line, hypotheses)
        return "\n".join(rows)

    def text(self, line: int, hypothesis: Hypothesis) -> str:
        """The plain text of a hypothesis of that line."""
        if not self.replace_unk:
            return plain_text(self.tokenizers.target, hypothesis.tokens)
        return plain_line(self.tokenizers.target.join(self._spelt(line, hypothesis)))

    def words(self, line: int, hypothesis: Hypothesis) -> list[tuple[int, int]]:
        """Pairs of words, source and target, that a hypothesis of that line aligns."""
        return word_pairs(
            hypothesis.alignment or [],
            source_words(self.tokenizers.source, self.source[line - self.first]),
            target_words(self.tokenizers.target, self._spelt(line, hypothesis)),
        )

    def _spelt(self, line: int, hypothesis: Hypothesis) -> list[str]:
        """The pieces of which the text of a hypothesis is made."""
        if not self.replace_unk:
            return self.tokenizers.target.pieces(hypothesis.tokens)
        source = self.source[line - self.first]
        alignment = hypothesis.alignment or []
        return replace_unknown(self.tokenizers, hypothesis.tokens, alignment, source)

    def _table(self, line: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        for hypothesis in hypotheses:
            text = self.text(line, hypothesis).replace("\t", " ")
            more = f"\t{pharaoh(self.words(line, hypothesis))}" if self.align else ""
            yield f"{line + 1}\t{hypothesis.score:.6f}\t{text}{more}"

    def _json(self, line: int, hypotheses: Sequence[Hypothesis]) -> str:
        found = [self._object(line, hypothesis) for hypothesis in hypotheses]
        answer = {"line": line + 1, "source": self.source[line - self.first], "hypotheses": found}
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)

    def _object(self, line: int, hypothesis: Hypothesis) -> dict[str, object]:
        found: dict[str, object] = {
            "text": self.text(line, hypothesis),
            "score": _json_number(hypothesis.score),
            "token_scores": [_json_number(score) for score in hypothesis.token_scores],
        }
        if self.align:
            found["alignment"] = pharaoh(self.words(line, hypothesis))
        if hypothesis.utility is not None:
            found["utility"] = hypothesis.utility
        return found

    def _rows(self, line: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        reader, writer = self.tokenizers
        (ids,) = reader.encode_lines([self.source[line - self.first]])
        yield f"S-{line}\t{' '.join(reader.pieces(ids))}"
        if self.reference is not None:
            (ids,) = writer.encode_lines([self.reference[line - self.first]])
            # fairseq marks what a reference says and no model can, so that it never counts as right
            known = zip(ids, writer.pieces(ids), strict=True)
            pieces = ["<<unk>>" if i == writer.symbols.unk else piece for i, piece in known]
            yield f"T-{line}\t{' '.join(pieces)}"
        for hypothesis in hypotheses:
            score = _base_2(hypothesis.score)
            yield f"H-{line}\t{score}\t{' '.join(writer.pieces(hypothesis.tokens))}"
            yield f"D-{line}\t{score}\t{self.text(line, hypothesis)}"
            scores = " ".join(f"{_base_2(score):.4f}" for score in hypothesis.token_scores)
            yield f"P-{line}\t{scores}"
            if self.align:
                pairs = [(seen, place) for place, seen in enumerate(hypothesis.alignment or [])]
                yield f"A-{line}\t{pharaoh(pairs)}"


def plain_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids without line breaks."""
    return plain_line(tokenizer.decode(ids))


def _base_2(score: float) -> float:
    """A natural logarithm to base 2; in single precision, so that the digits are fairseq's too."""
    return float(np.float32(score) / _LN_2)


def _json_number(value: float) -> float | None:
    """The value, or None where it has no spelling in JSON: a score of -inf says "impossible"."""
    return value if math.isfinite(value) else None
