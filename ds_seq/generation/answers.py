"""What a trained model answers in the Python interface.

Shapes: N lines, S source length, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Translation(NamedTuple):
    """A translation of a line."""

    text: str
    score: float
    """Log-probability divided by the length penalty, as written by `ds-seq generate`."""


class TargetScore(NamedTuple):
    """A model's score of a given translation."""

    log_prob: float
    """The sum of `token_scores`."""
    token_scores: list[float]
    """Log-probability of each piece of the target and of the end symbol."""
    score: float
    """Log-probability divided by the length penalty, as written by `ds-seq rescore`."""


class Encoding(NamedTuple):
    """Encoder states of some lines."""

    states: Tensor
    """(N, S, D) last hidden states, 0 where the mask is False."""
    mask: Tensor
    """(N, S) bool, True at tokens; all False for a line without text."""
