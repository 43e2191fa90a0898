"""Filters of cleaned pairs. Each is one criterion with one name, which reports use.

A filter is called with the two normalized, non-empty sides of a pair and says whether to drop it.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

from ds_seq.text.scripts import lacks_spaces

_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.I)
_AFTER_ADDRESS = ".,;:!?)]}>\"'`»“”’‘…"
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,:'\u2019\u00a0\u202f]\d+)*(?!\w)")
_DIGIT = re.compile(r"\d")
_NONE: frozenset[str] = frozenset()
_NO_DIGIT = re.compile(r"\D+")
_WORD = re.compile(r"\w+")
_LONGEST_PHRASE = 4


class Filter(Protocol):
    """Says whether to drop a pair."""

    reason: ClassVar[str]

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""


@dataclass(frozen=True)
class TooFewChars:
    """Drops pairs with a side of fewer characters."""

    least: int
    reason: ClassVar[str] = "too_few_chars"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return len(source) < self.least or len(target) < self.least


@dataclass(frozen=True)
class TooManyChars:
    """Drops pairs with a side of more characters."""

    most: int
    reason: ClassVar[str] = "too_many_chars"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return len(source) > self.most or len(target) > self.most


@dataclass(frozen=True)
class CharRatio:
    """Drops pairs whose numbers of characters differ too much."""

    most: float
    reason: ClassVar[str] = "char_ratio"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        shorter, longer = sorted((len(source), len(target)))
        return longer > self.most * shorter


@dataclass(frozen=True)
class LongWord:
    """Drops pairs with a long word, which is often garbage or encoded data.

    Addresses, and runs of scripts without spaces, may be longer.
    """

    most: int
    reason: ClassVar[str] = "long_word"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return self._has(source) or self._has(target)

    def _has(self, text: str) -> bool:
        if len(text) <= self.most:
            return False
        return any(
            len(word) > self.most and not _ADDRESS.search(word) and not lacks_spaces([word])
            for word in text.split()
        )


@dataclass(frozen=True)
class AddressMismatch:
    """Drops pairs whose sides have other web and mail addresses, in whatever order."""

    reason: ClassVar[str] = "url_mismatch"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        if not (_may_have_address(source) or _may_have_address(target)):
            return False
        return addresses(source) != addresses(target)


def _may_have_address(text: str) -> bool:
    return "://" in text or "@" in text or "www." in text or "WWW." in text


def addresses(text: str) -> Counter[str]:
    """Return the web and mail addresses of a text, without the signs that end a sentence."""
    return Counter(match.rstrip(_AFTER_ADDRESS) for match in _ADDRESS.findall(text))


@dataclass(frozen=True)
class NumberMismatch:
    """Drops pairs with too many numbers on one side only.

    The share is (1 + numbers on both sides) / (1 + numbers on one side only), as in OpusCleaner.
    """

    least: float
    reason: ClassVar[str] = "number_mismatch"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        here, there = numbers(source), numbers(target)
        if here == there:
            return self.least > 1 + len(here)
        return 1 + len(here & there) < self.least * (1 + len(here ^ there))


def numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text: digits of any script, without separators and leading zeros."""
    if _DIGIT.search(text) is None:
        return _NONE
    found = set()
    for match in _NUMBER.findall(text):
        digits = _NO_DIGIT.sub("", match)
        if not digits.isascii():
            digits = "".join(str(unicodedata.digit(digit)) for digit in digits)
        found.add(digits.lstrip("0") or "0")
    return frozenset(found)


@dataclass(frozen=True)
class RepeatedChars:
    """Drops pairs in which a character is repeated too often in a row."""

    most: int
    reason: ClassVar[str] = "repeated_chars"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        pattern = _run_of_chars(self.most)
        return bool(pattern.search(source) or pattern.search(target))


@cache
def _run_of_chars(most: int) -> re.Pattern[str]:
    return re.compile(rf"(\S)\1{{{most},}}")


@dataclass(frozen=True)
class RepeatedWords:
    """Drops pairs in which one word, or up to four words, are repeated too often in a row."""

    most: int
    reason: ClassVar[str] = "repeated_words"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return self._repeats(source.split()) or self._repeats(target.split())

    def _repeats(self, words: Sequence[str]) -> bool:
        for length in range(1, _LONGEST_PHRASE + 1):
            equal = 0
            for earlier, later in zip(words, words[length:], strict=False):
                equal = equal + 1 if earlier == later else 0
                if equal >= length * self.most:
                    return True
        return False


@dataclass(frozen=True)
class _Alphabet(ABC):
    """Drops pairs with a side that has too little of the letters of its language.

    Attributes:
        source: letters of the source language; see `ds_seq.text.languages.letters`.
        target: letters of the target language.
        least: smallest share.
    """

    source: str
    target: str
    least: float

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return self._is_short(self.source, source) or self._is_short(self.target, target)

    @abstractmethod
    def _is_short(self, letters: str, text: str) -> bool:
        """Return whether a side has too few of its letters."""


@dataclass(frozen=True)
class AlphabetWords(_Alphabet):
    """Drops pairs with a side of which too few words begin with a letter of its language."""

    reason: ClassVar[str] = "alphabet_words"

    def _is_short(self, letters: str, text: str) -> bool:
        return len(_first_letters(letters).findall(text)) < self.least * len(text.split())


@dataclass(frozen=True)
class AlphabetChars(_Alphabet):
    """Drops pairs with a side of which too few characters, spaces apart, are of its language."""

    reason: ClassVar[str] = "alphabet_chars"

    def _is_short(self, letters: str, text: str) -> bool:
        others = len(_runs_of(letters).sub("", text))
        every = len("".join(text.split()))
        return every - others < self.least * every


@cache
def _runs_of(letters: str) -> re.Pattern[str]:
    return re.compile(rf"[{letters}\s]+")


@cache
def _first_letters(letters: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\S)[^\w\s]*[{letters}]")


@dataclass(frozen=True)
class UniqueRatio:
    """Drops pairs with a side in which too few sequences of characters are different.

    A decoder in a loop produces such text (NLLB, back-translations).
    """

    order: int
    least: float
    reason: ClassVar[str] = "unique_ratio"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return self._is_low(source) or self._is_low(target)

    def _is_low(self, text: str) -> bool:
        total = len(text) - self.order + 1
        if total < 1:
            return False
        different = {text[start : start + self.order] for start in range(total)}
        return len(different) < self.least * total


@dataclass(frozen=True)
class TermList:
    """Terms to look for, in any case; those of several words may be separated by any signs.

    Terms of scripts without spaces are also found inside longer runs.
    """

    terms: tuple[str, ...]

    def count(self, text: str) -> int:
        """Return how many of the terms stand in a text."""
        phrases, parts = _prepared(self.terms)
        text = text.casefold()
        words = _WORD.findall(text)
        found = {
            phrase
            for start, word in enumerate(words)
            for phrase in phrases.get(word, ())
            if phrase == tuple(words[start : start + len(phrase)])
        }
        return len(found) + sum(part in text for part in parts)


@cache
def _prepared(
    terms: tuple[str, ...],
) -> tuple[dict[str, list[tuple[str, ...]]], tuple[str, ...]]:
    """Return the terms as tuples of words by first word, and those to find inside words."""
    phrases: dict[str, list[tuple[str, ...]]] = {}
    parts = []
    for term in dict.fromkeys(term.casefold().strip() for term in terms):
        words = tuple(_WORD.findall(term))
        if lacks_spaces([term]):
            parts.append(term)
        elif words and words not in phrases.setdefault(words[0], []):
            phrases[words[0]].append(words)
    return phrases, tuple(parts)


@dataclass(frozen=True)
class Terms:
    """Drops pairs with a side of too many terms of its list."""

    source: TermList
    target: TermList
    most: int
    reason: ClassVar[str] = "terms"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return self.source.count(source) > self.most or self.target.count(target) > self.most


@dataclass(frozen=True)
class TermDifference:
    """Drops pairs of which one side has more terms of its list: it may be no translation."""

    source: TermList
    target: TermList
    most: int
    reason: ClassVar[str] = "term_difference"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        return abs(self.source.count(source) - self.target.count(target)) > self.most
