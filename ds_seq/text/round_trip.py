"""Whether text comes out of a tokenizer as it went in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ds_seq.names import IDENTITY
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizer

_EXAMPLES = ("，", "！", "…", "½", "x²", "ﬁ", "Ａ", "ทำ", "\u00a0", "\u3000", "ß", "A")
_MOST_SHOWN = 6


class Change(NamedTuple):
    """A text that does not come out as it is."""

    number: int
    """Number of the text, from 1."""
    text: str
    result: str
    """The text after encoding and decoding."""


def changes(
    tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[Sequence[int]] | None = None
) -> Iterator[Change]:
    """Yield the texts that encoding and decoding change.

    Args:
        tokenizer: tokenizer of the texts.
        texts: lines of text.
        encoded: their ids, if known.
    """
    if encoded is None:
        encoded = tokenizer.encode_lines(texts)
    for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), 1):
        result = tokenizer.decode(ids)
        if result != text:
            yield Change(number, text, result)


def rewriting(tokenizer: Tokenizer) -> str | None:
    """Describe the rule by which a tokenizer rewrites text; None if there is none.

    Only the rules of SentencePiece are known.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer) or tokenizer.normalization == IDENTITY:
        return None
    pairs = [(text, tokenizer.rewrite(f"a{text}a")[1:-1]) for text in _EXAMPLES]
    shown = [f"{_shown(text)} -> {_shown(new)}" for text, new in pairs if new != text]
    examples = f" ({', '.join(shown[:_MOST_SHOWN])})" if shown else ""
    return f"the rule {tokenizer.normalization}{examples}"


def _shown(text: str) -> str:
    return repr(text) if not text.isprintable() or text.isspace() or not text else text
