"""Noisy-channel scores are weighted sums; weights are those with the best translations."""

from __future__ import annotations

import pytest

from ds_seq.generation.noisy_channel import Weights, best_first, combined, tuned
from ds_seq.search.hypotheses import Hypothesis

LINES = [0, 0, 0, 1, 1]


def _scored(*scores: float) -> list[Hypothesis]:
    return [Hypothesis([7], score, [score]) for score in scores]


OWN = _scored(-1.0, -1.5, -2.0, -1.0, -1.2)
CHANNEL = _scored(-3.0, -1.0, -2.5, -2.0, -2.0)
LANGUAGE_MODEL = _scored(-2.0, -4.0, -1.0, -5.0, -1.0)


def test_scores_are_weighted_sums() -> None:
    found = combined(OWN, CHANNEL, LANGUAGE_MODEL, Weights(0.5, 0.25))
    expected = [-1 - 1.5 - 0.5, -1.5 - 0.5 - 1, -2 - 1.25 - 0.25, -1 - 1 - 1.25, -1.2 - 1 - 0.25]
    assert [each.score for each in found] == pytest.approx(expected)
    assert [each.token_scores for each in found] == [each.token_scores for each in OWN]
    assert [each.score for each in combined(OWN, None, None, Weights(1.0, 1.0))] == [
        each.score for each in OWN
    ]


def test_the_best_of_each_line_comes_first() -> None:
    assert best_first(LINES, OWN) == [0, 1, 2, 3, 4]
    assert best_first(LINES, combined(OWN, CHANNEL, None, Weights(1.0, 0.0))) == [1, 0, 2, 3, 4]
    assert best_first(LINES, combined(OWN, None, LANGUAGE_MODEL, Weights(0.0, 1.0))) == [
        0, 2, 1, 4, 3,
    ]  # fmt: skip


def test_weights_are_those_that_choose_the_best_rows() -> None:
    wanted = {1, 4}  # the channel model prefers the first, the language model the second
    weights, quality = tuned(
        lambda tried: combined(OWN, CHANNEL, LANGUAGE_MODEL, tried),
        lambda chosen: float(len(wanted & set(chosen))),
        LINES,
        ((0.0, 1.0), (0.0, 0.2, 3.0)),
    )
    assert (weights, quality) == (Weights(1.0, 0.2), 2.0)
