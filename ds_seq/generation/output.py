"""Output formats of translations: plain text, or with scores and alternatives for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ds_seq.generation.words import (
    pharaoh,
    plain_line,
    replace_unknown,
    source_words,
    target_words,
    word_pairs,
)
from ds_seq.names import OutputFormat
from ds_seq.search.hypotheses import Hypothesis
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

_LN_2 = np.float32(math.log(2))


@dataclass(frozen=True)
class Spelling:
    """Turns the ids of a translation into the text that is written and scored.

    Attributes:
        tokenizer: tokenizer of the target.
        tag: id of a symbol with which translations begin and which is no part of their text, or
            None.
        lines: text of certain translations by their ids, as the user spells it; None for none.
    """

    tokenizer: Tokenizer
    tag: int | None = None
    lines: Mapping[tuple[int, ...], str] | None = None

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text of a translation, without line breaks."""
        line = None if self.lines is None else self.lines.get(tuple(ids))
        return plain_text(self.tokenizer, self.untagged(ids)) if line is None else line

    def untagged(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids without the tag."""
        return ids[self.num_tags(ids) :]

    def num_tags(self, ids: Sequence[int]) -> int:
        """Return the number of ids at the start that are no part of the text."""
        count = _opening_length(self.tokenizer, ids)
        return count + int(self.tag is not None and ids[count : count + 1] == [self.tag])


@dataclass(frozen=True)
class LineWriter:
    """Formats the hypotheses of one line of the input.

    `text`: the best translation.
    `tsv`: a line per hypothesis with the number of the input line from 1, the score, the text, and
    the word alignment if requested.
    `jsonl`: one object with `line` from 1, `source`, and `hypotheses`, each with `text`, `score`
    and `token_scores` (natural logarithms, the end symbol last) and, if available, the word
    `alignment` and `utility`.
    `fairseq`: the output of `fairseq-generate` in input order: S- and T-lines with the pieces of
    source and reference, then for each hypothesis an H-line with score and pieces, a D-line with
    score and plain text, a P-line with the scores of the pieces and of the end symbol, and, if
    requested, an A-line with the alignment of the pieces. Lines count from 0 and logarithms have
    base 2 (Ott et al., 2019, "fairseq: A Fast, Extensible Toolkit for Sequence Modeling").

    Alignments are pairs `source-target` counted from 0. Word alignments refer to the words,
    separated by spaces, of `source` and of the written text.

    A line without text has one empty hypothesis of score 0 in every format.

    Attributes:
        form: output format.
        tokenizers: tokenizers that convert ids to text and pieces.
        source: normalized lines of the input.
        reference: normalized reference translations, or None.
        first: number of the first of these lines in the whole input, from 0.
        align: whether to write alignments; requires hypotheses with alignments.
        replace_unk: whether to replace unknown pieces of the text by the source they are aligned
            with; see `replace_unknown`. Requires hypotheses with alignments. Written pieces stay
            unchanged.
        spelling: turns ids into text; default: decodes them. Pieces and scores are those of all
            ids.
    """

    form: OutputFormat
    tokenizers: Tokenizers
    source: Sequence[str]
    reference: Sequence[str] | None = None
    first: int = 0
    align: bool = False
    replace_unk: bool = False
    spelling: Spelling | None = None

    def __call__(self, line: int, hypotheses: Sequence[Hypothesis]) -> str:
        """Return the output: one line, or several lines joined by newlines.

        Args:
            line: number of the line in the whole input, from 0.
            hypotheses: at least one hypothesis, the best first.
        """
        if self.form == "text":
            return self.text(line, hypotheses[0])
        if self.form == "jsonl":
            return self._json(line, hypotheses)
        rows = self._table(line, hypotheses) if self.form == "tsv" else self._rows(line, hypotheses)
        return "\n".join(rows)

    def text(self, line: int, hypothesis: Hypothesis) -> str:
        """Return the plain text of a hypothesis of a line."""
        if not self.replace_unk or self.tokenizers.target.symbols.unk not in hypothesis.tokens:
            return self._spelling(hypothesis.tokens)
        return plain_line(self.tokenizers.target.join(self._spelt(line, hypothesis)))

    def words(self, line: int, hypothesis: Hypothesis) -> list[tuple[int, int]]:
        """Return the pairs of source and target words that a hypothesis of a line aligns."""
        skipped = self._spelling.num_tags(hypothesis.tokens)
        return word_pairs(
            (hypothesis.alignment or [])[skipped:],
            source_words(self.tokenizers.source, self.source[line - self.first]),
            target_words(self.tokenizers.target, self._spelt(line, hypothesis)),
        )

    def _spelt(self, line: int, hypothesis: Hypothesis) -> list[str]:
        """Return the pieces that form the text of a hypothesis."""
        tokens = self._spelling.untagged(hypothesis.tokens)
        if not self.replace_unk:
            return self.tokenizers.target.pieces(tokens)
        source = self.source[line - self.first]
        alignment = (hypothesis.alignment or [])[len(hypothesis.tokens) - len(tokens) :]
        return replace_unknown(self.tokenizers, tokens, alignment, source)

    @property
    def _spelling(self) -> Spelling:
        return self.spelling or Spelling(self.tokenizers.target)

    def _table(self, line: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        for hypothesis in hypotheses:
            text = self.text(line, hypothesis).replace("\t", " ")
            more = f"\t{pharaoh(self.words(line, hypothesis))}" if self.align else ""
            yield f"{line + 1}\t{hypothesis.score:.6f}\t{text}{more}"

    def _json(self, line: int, hypotheses: Sequence[Hypothesis]) -> str:
        objects = [self._object(line, hypothesis) for hypothesis in hypotheses]
        record = {"line": line + 1, "source": self.source[line - self.first], "hypotheses": objects}
        return json.dumps(record, ensure_ascii=False, allow_nan=False)

    def _object(self, line: int, hypothesis: Hypothesis) -> dict[str, object]:
        fields: dict[str, object] = {
            "text": self.text(line, hypothesis),
            "score": json_number(hypothesis.score),
            "token_scores": [json_number(score) for score in hypothesis.token_scores],
        }
        if self.align:
            fields["alignment"] = pharaoh(self.words(line, hypothesis))
        if hypothesis.utility is not None:
            fields["utility"] = hypothesis.utility
        return fields

    def _rows(self, line: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        reader, writer = self.tokenizers
        (ids,) = reader.encode_lines([self.source[line - self.first]])
        # fairseq shows the language in front of a source, and leaves out that of a translation
        shown = [i for i in reader.symbols.opening if i != reader.symbols.bos]
        yield f"S-{line}\t{' '.join(reader.pieces([*shown, *ids]))}"
        if self.reference is not None:
            (ids,) = writer.encode_lines([self.reference[line - self.first]])
            # like fairseq, mark unknown pieces of a reference so that they never match a hypothesis
            known = zip(ids, writer.pieces(ids), strict=True)
            pieces = ["<<unk>>" if i == writer.symbols.unk else piece for i, piece in known]
            yield f"T-{line}\t{' '.join(pieces)}"
        for hypothesis in hypotheses:
            score = _base_2(hypothesis.score)
            tokens = hypothesis.tokens[_opening_length(writer, hypothesis.tokens) :]
            yield f"H-{line}\t{score}\t{' '.join(writer.pieces(tokens))}"
            yield f"D-{line}\t{score}\t{self.text(line, hypothesis)}"
            scores = " ".join(f"{_base_2(score):.4f}" for score in hypothesis.token_scores)
            yield f"P-{line}\t{scores}"
            if self.align:
                alignment = enumerate(hypothesis.alignment or [])
                pairs = [(source, target) for target, source in alignment]
                yield f"A-{line}\t{pharaoh(pairs)}"


def plain_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decode ids to text without line breaks."""
    return plain_line(tokenizer.decode(ids))


def _opening_length(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Return the number of ids at the start that open every sentence of the tokenizer."""
    opening = tokenizer.symbols.opening
    return len(opening) if tuple(ids[: len(opening)]) == opening else 0


def _base_2(score: float) -> float:
    """Convert a natural logarithm to base 2, in float32 so that the digits equal fairseq's."""
    return float(np.float32(score) / _LN_2)


def json_number(value: float) -> float | None:
    """Return a finite value, else None: JSON cannot represent the -inf of impossible hypotheses."""
    return value if math.isfinite(value) else None
