"""Sentences of a running text, so that a long text can be translated sentence by sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ds_seq.text.normalize import has_text

_CLOSING = "\"'\u2019\u201c\u201d\u00bb\u203a)\\]"
# a sign that ends sentences, closing quotes, space, and what a sentence can begin with; signs of
# Chinese and Japanese need no space
_END = re.compile(
    rf"[.!?\u2026\u061f\u0964]+[{_CLOSING}]*\s+(?=\S)|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*\s*(?=\S)"
)
_ABBREVIATIONS = frozenset(
    ("approx", "bzw", "ca", "cf", "dr", "e.g", "eg", "etc", "fig", "i.e", "mr", "mrs", "ms", "nr")
    + ("prof", "resp", "sec", "st", "u.s", "usw", "vgl", "vol", "vs", "z.b")
)
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)\.$")


class Sentence(NamedTuple):
    """A sentence of a text."""

    text: str
    paragraph: int
    """Number of its line, from 0, among the lines of the text."""


def split_sentences(text: str) -> Iterator[Sentence]:
    """Yield the sentences of a text in their order; a line break always ends one.

    A full stop ends a sentence unless a small letter follows, or unless it belongs to a number, an
    initial or one of a few abbreviations. No character but spaces between sentences is lost.

    Args:
        text: running text; lines without text have no sentences.
    """
    for number, line in enumerate(text.splitlines()):
        start = 0
        for end in _END.finditer(line):
            if _ends(line, end):
                if has_text(line[start : end.end()]):
                    yield Sentence(line[start : end.end()].strip(), number)
                start = end.end()
        if has_text(line[start:]):
            yield Sentence(line[start:].strip(), number)


def _ends(line: str, end: re.Match[str]) -> bool:
    """Return whether a possible end of a sentence is one."""
    if line[end.end()].islower():
        return False
    mark = end[0].rstrip()
    if mark != ".":
        return True
    word = _LAST_WORD.search(line[: end.start() + 1])
    if word is None:  # "1. January" as an ordinal number of German cannot be told from an end
        return True
    return len(word[1]) > 1 and word[1].lower() not in _ABBREVIATIONS
