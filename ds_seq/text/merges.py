"""Byte pair encoding with the merges of subword-nmt or fastBPE: pieces end with `@@` inside words.

Sennrich et al., 2016, "Neural Machine Translation of Rare Words with Subword Units",
https://arxiv.org/abs/1508.07909
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ds_seq.errors import UserError

CONTINUES = "@@"
"""Ends a piece that is followed by another one of the same word."""

END = "</w>"
"""Ends the last piece of a word in a list of merges."""
_MOST_REMEMBERED = 100_000


class Merges:
    """A list of merges, in the order in which they are applied.

    In version 0.1 of the files the end of a word is a symbol of its own; from 0.2 on, and with
    fastBPE, it is part of the last character.

    Args:
        content: content of the file: two symbols on each line, with fastBPE also a count.
        name: name of the file in error messages.

    Attributes:
        end_is_apart: whether the end of a word is a symbol of its own.

    Raises:
        UserError: a line is not UTF-8, or has not two symbols.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self._ranks: dict[tuple[str, str], int] = {}
        self._pieces: dict[str, list[str]] = {}  # of words seen before
        try:
            lines = content.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            number = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{name}: line {number}: invalid UTF-8; convert it to UTF-8") from None
        version = re.fullmatch(r"#version: (\d+)\.(\d+)", lines[0].strip("\r "))
        first = 1 if version else 0
        self.end_is_apart = version is None or (int(version[1]), int(version[2])) < (0, 2)
        for number, line in enumerate(lines[first:], first + 1):
            parts = line.strip("\r ").split(" ")
            if len(parts) == 3 and parts[2].isdecimal():
                self.end_is_apart = False  # fastBPE has counts, and no version
            elif len(parts) != 2 or not all(parts):
                raise UserError(
                    f"{name}: line {number}: {line[:60]!r} is not a merge, two symbols and a space "
                    "between; give the codes of subword-nmt or fastBPE"
                )
            self._ranks.setdefault((parts[0], parts[1]), number)

    def split(self, text: str, whole: Collection[str] = ()) -> list[str]:
        """Return the pieces of a line whose words are separated by spaces.

        Args:
            text: the line.
            whole: words that are not split.
        """
        pieces: list[str] = []
        for word in text.strip("\r\n ").split(" "):
            if word in whole:
                pieces.append(word)
            elif word:
                pieces += self._word(word)
        return pieces

    def _word(self, word: str) -> list[str]:
        parts = self.merged(word)
        return [*(part + CONTINUES for part in parts[:-1]), parts[-1]]

    def merged(self, word: str) -> list[str]:
        """Return the parts of a word, without marks."""
        known = self._pieces.get(word)
        if known is None:
            known = self._merged(word)
            if len(self._pieces) < _MOST_REMEMBERED:
                self._pieces[word] = known
        return known

    def _merged(self, word: str) -> list[str]:
        """Join the characters of a word: always all places of the pair that was learned first."""
        parts = [*word, END] if self.end_is_apart else [*word[:-1], word[-1] + END]
        while len(parts) > 1:
            pairs = [pair for pair in zip(parts, parts[1:], strict=False) if pair in self._ranks]
            if not pairs:
                break
            best = min(pairs, key=self._ranks.__getitem__)
            joined: list[str] = []
            place = 0
            while place < len(parts):
                if tuple(parts[place : place + 2]) == best:
                    joined.append(parts[place] + parts[place + 1])
                    place += 2
                else:
                    joined.append(parts[place])
                    place += 1
            parts = joined
        if parts[-1] == END:
            return parts[:-1]
        return [*parts[:-1], parts[-1].removesuffix(END)]
