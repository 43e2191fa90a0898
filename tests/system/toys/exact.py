"""A metric: the share of lines that are right to the letter."""

from __future__ import annotations

from collections.abc import Sequence


def exact_matches(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """In percent, with one reference."""
    right = [a == b for a, b in zip(hypotheses, references[0], strict=True)]
    return 100.0 * sum(right) / len(right)
