"""Translations as text: one line each, or with scores and alternatives for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ds_seq.data.vocab import Vocab
from ds_seq.generation.hypotheses import Hypothesis

OutputFormat = Literal["text", "tsv", "jsonl", "fairseq"]
FORMATS: tuple[str, ...] = get_args(OutputFormat)

_LN_2 = np.float32(math.log(2))


@dataclass(frozen=True)
class LineWriter:
    """Writes what was found for one line of the input.

    ``text``: the best translation.
    ``tsv``: a line for each hypothesis: number of the input line from 1, score, text.
    ``jsonl``: one object: ``line`` from 1, ``source``, and ``hypotheses`` with ``text``, ``score``
    and ``token_scores``, the end symbol's last; natural logarithms.
    ``fairseq``: what ``fairseq-generate`` prints, in input order: S- and T-lines with the pieces of
    source and reference, then for each hypothesis an H-line with score and pieces, a D-line with
    score and plain text and a P-line with the scores of the pieces and of the end symbol; counted
    from 0, logarithms to base 2 (Ott et al., 2019, "fairseq: A Fast, Extensible Toolkit for
    Sequence Modeling").

    A line without text has one empty hypothesis of score 0 in every format.

    Attributes:
        form: one of the above.
        vocab: makes text and pieces of ids.
        source: lines of the input, as the model reads them.
        reference: their translations, where there are any.
    """

    form: OutputFormat
    vocab: Vocab
    source: Sequence[str]
    reference: Sequence[str] | None = None

    def __call__(self, line: int, hypotheses: Sequence[Hypothesis]) -> str:
        """The output, one line or several of them joined by ``\\n``.

        Args:
            line: number of the input line, from 0.
            hypotheses: at least one, the best first.
        """
        if self.form == "text":
            return plain_text(self.vocab, hypotheses[0].tokens)
        if self.form == "jsonl":
            return self._json(line, hypotheses)
        rows = self._table(line, hypotheses) if self.form == "tsv" else self._rows(line, hypotheses)
        return "\n".join(rows)

    def _table(self, line: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        for hypothesis in hypotheses:
            text = plain_text(self.vocab, hypothesis.tokens).replace("\t", " ")
            yield f"{line + 1}\t{hypothesis.score:.6f}\t{text}"

    def _json(self, line: int, hypotheses: Sequence[Hypothesis]) -> str:
        found = [
            {
                "text": plain_text(self.vocab, hypothesis.tokens),
                "score": _json_number(hypothesis.score),
                "token_scores": [_json_number(score) for score in hypothesis.token_scores],
            }
            for hypothesis in hypotheses
        ]
        answer = {"line": line + 1, "source": self.source[line], "hypotheses": found}
        return json.dumps(answer, ensure_ascii=False, allow_nan=False)

    def _rows(self, line: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        yield f"S-{line}\t{self._pieces(self.vocab.encode_lines([self.source[line]])[0])}"
        if self.reference is not None:
            ids = self.vocab.encode_lines([self.reference[line]])[0]
            # fairseq marks what a reference says and no model can, so that it never counts as right
            yield f"T-{line}\t{self._pieces(ids, unknown='<<unk>>')}"
        for hypothesis in hypotheses:
            score = _base_2(hypothesis.score)
            yield f"H-{line}\t{score}\t{self._pieces(hypothesis.tokens)}"
            yield f"D-{line}\t{score}\t{plain_text(self.vocab, hypothesis.tokens)}"
            scores = " ".join(f"{_base_2(score):.4f}" for score in hypothesis.token_scores)
            yield f"P-{line}\t{scores}"

    def _pieces(self, ids: Sequence[int], unknown: str | None = None) -> str:
        pieces = self.vocab.pieces(ids)
        if unknown is not None:
            unk_id = self.vocab.unk_id
            pieces = [unknown if i == unk_id else p for i, p in zip(ids, pieces, strict=True)]
        return " ".join(pieces)


def plain_text(vocab: Vocab, ids: Sequence[int]) -> str:
    """The text of ids without line breaks: a vocabulary of bytes can spell them."""
    return " ".join(vocab.decode(ids).replace("\r", "\n").split("\n")).strip()


def _base_2(score: float) -> float:
    """A natural logarithm to base 2; in single precision, so that the digits are fairseq's too."""
    return float(np.float32(score) / _LN_2)


def _json_number(value: float) -> float | None:
    """The value, or None where it has no spelling in JSON: a score of -inf says "impossible"."""
    return value if math.isfinite(value) else None
