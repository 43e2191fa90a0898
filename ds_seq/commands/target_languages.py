"""The options `--target-lang` and `--target-langs`: sources get tags as training gave them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from ds_seq.errors import UserError
from ds_seq.runs.card import ModelCard
from ds_seq.runs.tagger import Tagger, tagger
from ds_seq.text.lines import read_lines

_OPTION = "--target-lang"


class TargetLanguages(NamedTuple):
    """The language codes of the translations, as the options give them.

    Attributes:
        common: code of all lines, or None.
        path: file of `lines`.
        lines: code of each line, or None.
    """

    common: str | None = None
    path: str = ""
    lines: Sequence[str] | None = None

    @property
    def are_given(self) -> bool:
        """Whether one of the options is given."""
        return self.common is not None or self.lines is not None

    @property
    def conditions(self) -> dict[str, Sequence[str]]:
        """The options, to compare them when a run is resumed; none if none is given."""
        return {"target-lang": self.lines or [self.common or ""]} if self.are_given else {}

    def check_counts(self, source: Sequence[str]) -> None:
        """Refuse a file that does not have one line per line of `source`."""
        if self.lines is not None and len(self.lines) != len(source):
            raise UserError(
                f"--target-langs {self.path}: has {len(self.lines):,} lines but the input has "
                f"{len(source):,}; give the language code of each input line"
            )

    def tagger(self, card: ModelCard) -> Tagger | None:
        """Return what adds the tags of a model; None if no option is given.

        Raises:
            UserError: the model has no tag of a language.
        """
        if not self.are_given:
            return None
        if self.lines is None:
            return tagger(card, [self.common or ""], _OPTION)
        return tagger(card, self.lines, _OPTION, f"--target-langs {self.path}:{{}}:")


def read_target_languages(args: argparse.Namespace) -> TargetLanguages:
    """Read the options.

    Raises:
        UserError: both are given, or the file is missing or not text.
    """
    if args.target_langs is None:
        return TargetLanguages(args.target_lang)
    if args.target_lang is not None:
        raise UserError("--target-lang: --target-langs names the language of each line, too")
    codes = [line.strip() for line in read_lines(args.target_langs)]
    return TargetLanguages(None, args.target_langs, codes)
