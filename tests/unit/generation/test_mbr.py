"""Minimum Bayes risk: sacreBLEU's utilities, and the choice among samples."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ds_seq.generation.mbr import MinimumRisk, build_utility
from ds_seq.generation.translate import LineResult
from ds_seq.search.hypotheses import Hypothesis

WORDS = [
    "a",
    "the",
    "house,",
    "house",
    "in",
    "Berlin.",
    "(is)",
    "5.3",
    "it's",
    "äöü",
    "!",
    "on-off",
]


def some_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 9))) for _ in range(count)]
    return [*texts, "", "a", "!", "".join(draw.choices(string.ascii_letters, k=30))]


@pytest.mark.parametrize("name", ["chrf", "bleu"])
@pytest.mark.parametrize("seed", [1, 2])
def test_utilities_are_sacrebleus_sentence_scores(name: str, seed: int) -> None:
    texts = some_texts(20, seed)
    metric = CHRF() if name == "chrf" else BLEU(effective_order=True)
    table = build_utility(name, "en")(texts)
    expected = [[metric.sentence_score(one, [other]).score for other in texts] for one in texts]
    np.testing.assert_allclose(table, expected, atol=1e-9)
    assert 5 < table.mean() < 95


def test_bleu_tokenizes_by_language() -> None:
    texts = ["我们去北京。", "我们去上海。"]
    metric = BLEU(effective_order=True, trg_lang="zh")
    table = build_utility("bleu", "zh")(texts)
    assert table[0, 1] == pytest.approx(metric.sentence_score(texts[0], texts[1:]).score)
    assert table[0, 1] != pytest.approx(build_utility("bleu", "en")(texts)[0, 1])


def spelt(hypothesis: Hypothesis) -> str:
    return "".join(map(chr, hypothesis.tokens))


def draw_of(text: str, score: float) -> Hypothesis:
    return Hypothesis([*map(ord, text)], score, [score] * (len(text) + 1))


@pytest.mark.parametrize("name", ["chrf", "bleu"])
def test_the_winner_has_the_most_in_common_with_the_other_samples(name: str) -> None:
    """Against the definition: every sample, the copies too, is a reference for all the others."""
    draw = random.Random(7)
    texts = [draw.choice(some_texts(6, 3)) for _ in range(15)]
    samples = [draw_of(text, -draw.random()) for text in texts]
    metric = CHRF() if name == "chrf" else BLEU(effective_order=True)
    expected = {
        text: np.mean(
            [
                metric.sentence_score(text, [other]).score
                for j, other in enumerate(texts)
                if j != texts.index(text)
            ]
        )
        for text in texts
    }
    ranked = MinimumRisk(build_utility(name, "en"), spelt).rank(samples)
    assert {spelt(one) for one in ranked} == set(texts) and len(ranked) == len(set(texts)) < 12
    for one in ranked:
        assert one.utility == pytest.approx(expected[spelt(one)], abs=1e-9)
    utilities = [one.utility or 0.0 for one in ranked]
    assert utilities == sorted(utilities, reverse=True) and utilities[0] > utilities[-1]


def test_equal_utilities_go_to_the_higher_score_and_then_to_the_first() -> None:
    def alike(texts: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.full((4, 4), 50.0)

    risk = MinimumRisk(alike, spelt, num_best=2)
    drawn = [("x", -3.0), ("y", -1.0), ("w", -1.0), ("z", -0.7), ("x", -0.9)]
    samples = [draw_of(text, score) for text, score in drawn]
    assert [spelt(one) for one in risk.rank(samples)] == ["z", "x", "y", "w"]
    assert [one.score for one in risk.rank(samples)] == [-0.7, -0.9, -1.0, -1.0]
    nothing = LineResult(1, [], [Hypothesis([], 0.0, [])], False)
    some, none = risk([LineResult(0, [4, 2], samples, True), nothing])
    assert none == nothing
    assert [spelt(one) for one in some.hypotheses] == ["z", "x"]
    assert (some.line, some.source, some.cut) == (0, [4, 2], True)
