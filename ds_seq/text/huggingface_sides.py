"""Tokenizers with a vocabulary for each side: those of FSMT, the wmt19 models of fairseq.

Text is normalized and tokenized by Moses' rules, then split by the merges of fastBPE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ds_seq.errors import UserError
from ds_seq.text.merges import END, Merges
from ds_seq.text.moses import Moses

OF_SIDES = {"source": "vocab-src.json", "target": "vocab-tgt.json"}
"""The vocabulary of each side."""
MERGES = "merges.txt"
_SETTINGS = "tokenizer_config.json"


class SidedPieces:
    """`Pieces` of one side of an FSMT model.

    Args:
        files: contents by name, with one of `OF_SIDES`.
        name: the folder, for messages.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, files: Mapping[str, str], name: str) -> None:
        (side,) = (side for side, file in OF_SIDES.items() if file in files)
        if MERGES not in files:
            raise UserError(f"{name}: has no {MERGES}; copy the whole folder")
        self._ids: dict[str, int] = json.loads(files[OF_SIDES[side]])
        self._names = {number: piece for piece, number in self._ids.items()}
        lines = [line.split()[:2] for line in files[MERGES].splitlines() if line.strip()]
        # the end of a word is part of its last character, as from version 0.2 on
        header, body = "#version: 0.2", [" ".join(line) for line in lines if line[0] != "#version:"]
        self._merges = Merges("\n".join([header, *body]).encode(), f"{name}: {MERGES}")
        settings = json.loads(files.get(_SETTINGS, "{}"))
        languages = settings.get("langs") or []
        if len(languages) != 2:
            raise UserError(f"{name}: {_SETTINGS} names no two languages (langs); copy it again")
        self._moses = Moses(languages[side == "target"], name)
        self._folds_case = bool(settings.get("do_lower_case"))
        self.languages: dict[str, int] = {}

    def frame(self, end: int) -> tuple[list[int], list[int]]:
        return [], []

    def encode_lines(self, lines: Sequence[str], is_source: bool) -> list[list[int]]:
        unknown = self._ids["<unk>"]
        rows = self.split_lines(lines, is_source)
        return [[self._ids.get(piece, unknown) for piece in row] for row in rows]

    def split_lines(self, lines: Sequence[str], is_source: bool) -> list[list[str]]:
        return [self._split(line) for line in lines]

    def _split(self, line: str) -> list[str]:
        text = self._moses.normalize(line.lower() if self._folds_case else line)
        pieces = []
        for word in self._moses.tokenize(text).split():
            *parts, last = self._merges.merged(word)
            pieces += [*parts, last + END]
        return pieces

    def piece(self, number: int) -> str | None:
        return self._names.get(number)

    def number(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def join(self, pieces: Sequence[str], is_source: bool) -> str:
        words = "".join(pieces).replace(END, " ")
        return self._moses.detokenize(words)
