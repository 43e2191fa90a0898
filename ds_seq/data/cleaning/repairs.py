"""Repairs of training text: what is left of HTML, of wikis, and of other known patterns."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from functools import cache
from typing import Protocol


class Repair(Protocol):
    """Changes one side of a pair."""

    def __call__(self, text: str) -> str:
        """Return the repaired text."""


@dataclass(frozen=True)
class Unescape:
    """Replace HTML entities by what they stand for, also those that were escaped twice."""

    def __call__(self, text: str) -> str:
        """Return the text without entities."""
        for _ in range(2):
            if "&" in text:
                text = html.unescape(text)
        return text


_WIKI_MARK = re.compile(r"[\[{<=]|''")
_WIKI = (
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]"), r"\1"),  # [[page|text]]
    (re.compile(r"\[(?:https?|ftp)://[^\s\]]+\s*([^\]]*)\]"), r"\1"),  # [http://address text]
    (re.compile(r"<ref\b[^<>]*/>|<ref\b[^<>]*>[^<>]*</ref>"), ""),
    (re.compile(r"</?(?:code|nowiki|ref|sub|sup|small|br|i|b)\b[^<>]*>", re.IGNORECASE), " "),
    (re.compile(r"\{\{[^{}]*\}\}"), ""),  # templates
    (re.compile(r"(?<=\S)\s?\[(?:\d{1,3}|[a-z]|citation needed)\]"), ""),  # footnotes
    (re.compile(r"^\s*(={2,6})\s*(.*?)\s*\1\s*$"), r"\2"),  # == heading ==
    (re.compile(r"'{2,5}"), ""),  # bold and italics
)


@dataclass(frozen=True)
class FixWiki:
    """Remove footnotes, links, templates, headings and emphasis of wikis, and keep their text."""

    def __call__(self, text: str) -> str:
        """Return the text without marks."""
        if _WIKI_MARK.search(text) is None:
            return text
        for pattern, replacement in _WIKI:
            text = pattern.sub(replacement, text)
        return text


@dataclass(frozen=True)
class RemovePatterns:
    """Remove what matches one of the regular expressions."""

    patterns: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """Return the text without matches."""
        for pattern in self.patterns:
            text = _compiled(pattern).sub("", text)
        return text


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
