"""What cleaning does with a corpus, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.cleaning.filters import Filter
from ds_seq.data.cleaning.languages import OtherLanguage
from ds_seq.data.cleaning.repairs import Repair
from ds_seq.names import DuplicateKey
from ds_seq.text.lines import PairPath
from ds_seq.text.look import Look, num_words
from ds_seq.text.normalize import Normalizer
from ds_seq.text.scripts import count_words

FIRST_REASONS = ("invalid_utf8", "empty", "too_short", "too_long", "ratio", "identical")
"""Reasons to drop a pair for which there is always a count, in the order in which they are tried;
`score` and the filters of the options follow, then the rules for duplicates."""
DUPLICATE = "duplicate"
REASONS = (*FIRST_REASONS, DUPLICATE)
"""Reasons of which reports always have the count."""
SCORE = "score"


class DuplicateRule(NamedTuple):
    """Keep only the best pairs of those that have the same key.

    Attributes:
        key: what makes two pairs the same.
        most: number of pairs to keep.
        reason: name for reports.
    """

    key: DuplicateKey
    most: int
    reason: str


class ScoreFile(NamedTuple):
    """The scores of a pair of files, one per line.

    Attributes:
        path: text file, perhaps compressed.
        column: tab-separated column of the score, from 1 on; None if a line is nothing else.
    """

    path: Path
    column: int | None


@dataclass(frozen=True)
class CleanOptions:
    """Normalization and filters of cleaning.

    Attributes:
        normalizer: applied to the text first.
        min_words: minimum number of words of each side.
        max_words: maximum number of words of each side.
        max_ratio: maximum ratio of the word counts of the two sides.
        drop_identical: whether to drop pairs whose sides are identical.
        drop_duplicates: whether to keep only one of equal pairs: the best, or else the first.
        duplicate_key: what makes pairs equal; None stands for both sides.
        repairs: applied before the normalizer.
        filters: other criteria, in the order in which they are tried.
        min_score: smallest score.
        max_per_source: number of pairs of one source that are kept.
        max_per_target: number of pairs of one target that are kept.
    """

    normalizer: Normalizer
    min_words: int
    max_words: int
    max_ratio: float
    drop_identical: bool
    drop_duplicates: bool
    duplicate_key: DuplicateKey | None = None
    repairs: tuple[Repair, ...] = ()
    filters: tuple[Filter, ...] = ()
    min_score: float | None = None
    max_per_source: int | None = None
    max_per_target: int | None = None

    @property
    def duplicate_rules(self) -> tuple[DuplicateRule, ...]:
        """The rules for pairs that repeat others, in the order in which they are applied."""
        rules = []
        if self.drop_duplicates:
            rules.append(DuplicateRule(self.duplicate_key or "pair", 1, DUPLICATE))
        if self.max_per_source is not None:
            rules.append(DuplicateRule("source", self.max_per_source, "per_source"))
        if self.max_per_target is not None:
            rules.append(DuplicateRule("target", self.max_per_target, "per_target"))
        return tuple(rules)

    @property
    def reasons(self) -> tuple[str, ...]:
        """All reasons to drop a pair with these options, in the order of reports."""
        names = dict.fromkeys(FIRST_REASONS)
        names |= dict.fromkeys([SCORE] if self.min_score is not None else [])
        names |= dict.fromkeys(rule.reason for rule in self.filters)
        names |= dict.fromkeys(rule.reason for rule in self.duplicate_rules)
        return tuple(dict.fromkeys([*names, DUPLICATE]))

    def load(self) -> None:
        """Load what the filters need, which may take minutes."""
        for rule in self.filters:
            if isinstance(rule, OtherLanguage):
                rule.load()

    def check(self) -> None:
        """Check what the filters need from outside, before any process is started.

        Raises:
            UserError: a library or a model is missing, or code from outside is not trusted.
        """
        for rule in self.filters:
            if isinstance(rule, OtherLanguage):
                rule.check()


@dataclass(frozen=True)
class Corpus:
    """A named training text.

    Attributes:
        name: its name in reports.
        inputs: pairs of files, one after the other.
        options: what to do with it.
        scores: the scores of each pair of files; empty if there are none.
    """

    name: str
    inputs: Sequence[PairPath]
    options: CleanOptions
    scores: Sequence[ScoreFile] = ()


def reason_to_drop(source: str, target: str, options: CleanOptions) -> str | None:
    """Return the reason to drop a single normalized pair, whatever else there is, or None."""
    if not source or not target:
        return "empty"
    shorter, longer = count_words(source), count_words(target)
    if shorter > longer:
        shorter, longer = longer, shorter
    if shorter < options.min_words:
        return "too_short"
    if longer > options.max_words:
        return "too_long"
    if longer > options.max_ratio * shorter:
        return "ratio"
    if options.drop_identical and source == target:
        return "identical"
    for rule in options.filters:
        if rule(source, target):
            return rule.reason
    return None


def may_be_dropped(
    sources: Sequence[str],
    targets: Sequence[str],
    options: CleanOptions,
    looks: Sequence[Look | None] = (None, None),
) -> NDArray[np.bool_]:
    """Return which normalized pairs (N,) `reason_to_drop` must look at; others have no reason.

    Most pairs of most corpora have none, and this takes a fraction of its time.

    Args:
        sources: the source of each pair.
        targets: the target of each pair.
        options: the limits.
        looks: of each side, see `num_words`.
    """
    if options.filters:
        return np.ones(len(sources), bool)
    shorter, longer = num_words(sources, looks[0]), num_words(targets, looks[1])
    shorter, longer = np.minimum(shorter, longer), np.maximum(shorter, longer)
    found = (shorter < max(options.min_words, 1)) | (longer > options.max_words)
    found |= longer > options.max_ratio * shorter
    if options.drop_identical:
        found |= np.fromiter(map(eq, sources, targets), bool, len(sources))
    return found


def is_below(score: float, options: CleanOptions) -> bool:
    """Return whether a score is too low."""
    return options.min_score is not None and score < options.min_score
