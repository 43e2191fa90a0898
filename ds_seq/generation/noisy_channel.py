"""Noisy-channel rescoring: further models judge the translations of a model.

Yee et al., 2019, "Simple and effective noisy channel modeling for neural machine translation",
https://arxiv.org/abs/1908.05731. The score of a translation y of x is

    log p(y|x) / n(y)  +  a log p(x|y) / n(x)  +  b log p(y) / n(y)

with a channel model from target to source, a language model of the target, and the length penalty n
of the search; the authors divide p(y) by the length of x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from ds_seq.search.hypotheses import Hypothesis

GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Weights that are tried of each model."""


class Weights(NamedTuple):
    """Factors of the models' scores."""

    channel: float
    language_model: float


def combined(
    own: Sequence[Hypothesis],
    channel: Sequence[Hypothesis] | None,
    language_model: Sequence[Hypothesis] | None,
    weights: Weights,
) -> list[Hypothesis]:
    """Return the translations with the weighted sum of all scores as their score.

    Args:
        own: the translations, as the model scores them.
        channel: their sources, as the channel model scores them; None: there is none.
        language_model: the translations, as a language model scores them; None: there is none.
        weights: factors of the scores of both.
    """
    totals = [each.score for each in own]
    for others, weight in zip((channel, language_model), weights, strict=True):
        if others is not None:
            totals = [
                total + weight * other.score for total, other in zip(totals, others, strict=True)
            ]
    return [replace(each, score=total) for each, total in zip(own, totals, strict=True)]


def best_first(lines: Sequence[int], scored: Sequence[Hypothesis]) -> list[int]:
    """Return the order of translations, grouped by their lines, in which the best come first."""
    return sorted(range(len(lines)), key=lambda row: (lines[row], -scored[row].score))


def tuned(
    score: Callable[[Weights], Sequence[Hypothesis]],
    quality: Callable[[Sequence[int]], float],
    lines: Sequence[int],
    grids: tuple[Iterable[float], Iterable[float]],
) -> tuple[Weights, float]:
    """Return the weights with which the best translations are best, and their quality.

    Args:
        score: weights -> the translations with their scores.
        quality: rows of the chosen translations, one of each line -> a score of them all.
        lines: line of each translation.
        grids: weights that are tried of the channel model, and of the language model.
    """
    found = Weights(0.0, 0.0), float("-inf")
    for pair in product(*grids):
        order = best_first(lines, score(Weights(*pair)))
        chosen = [
            row
            for place, row in enumerate(order)
            if place == 0 or lines[order[place - 1]] != lines[row]
        ]
        reached = quality(chosen)
        if reached > found[1]:
            found = Weights(*pair), reached
    return found
