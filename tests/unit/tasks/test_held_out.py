"""Scores of several texts: each on its own, each language pair, and their average."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ds_seq.names import ScoreAverage
from ds_seq.scores.metric import Measured, Metric
from ds_seq.tasks.held_out import PAIRS, HeldOut, Scored, averaged, figures_by_text


def _metric(language: str) -> Metric:
    """Share of equal lines; 100 more for French, so that the language shows."""

    def compute(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        pairs = list(zip(hypotheses, references[0], strict=True))
        share = sum(one == other for one, other in pairs) / len(pairs)
        return Measured(100 * share + (100 if language == "fr" else 0), "s")

    return Metric("equal", True, compute)


def _scored(name: str, languages: tuple[str, str], right: int, total: int) -> Scored:
    lines = ["a"] * right + ["b"] * (total - right)
    return Scored(name, HeldOut(languages), lines, ["a"] * total)


TEXTS = [
    _scored("news", ("en", "de"), 1, 4),
    _scored("talks", ("en", "de"), 6, 8),
    _scored("french", ("en", "fr"), 1, 2),
]


@pytest.mark.parametrize(
    ("average", "expected"),
    [("pooled", 50.0), ("texts", (25 + 75 + 150) / 3), ("pairs", (700 / 12 + 150) / 2)],
)
def test_figures_and_their_average(average: ScoreAverage, expected: float) -> None:
    figures = figures_by_text(TEXTS, lambda language: [_metric(language)])
    assert figures == {
        "equal/news": 25.0,
        "equal/talks": 75.0,
        "equal/french": 150.0,
        "equal/en-de": pytest.approx(700 / 12),
        "equal/en-fr": 150.0,
        PAIRS: "en-de en-fr",
    }
    whole = averaged({**figures, "equal": 50.0, "equal_signature": "s"}, [_metric("")], average)
    assert whole["equal"] == pytest.approx(expected)
    assert ("mean of" in whole["equal_signature"]) == (average != "pooled")


@pytest.mark.parametrize("average", ["texts", "pairs"])
def test_one_text_for_each_pair(average: ScoreAverage) -> None:
    figures = figures_by_text(TEXTS[1:], lambda language: [_metric(language)])
    assert list(figures) == ["equal/talks", "equal/french"]
    whole = averaged({**figures, "equal": 1.0}, [_metric("")], average)
    assert whole["equal"] == (75 + 150) / 2


def test_one_text_has_one_figure() -> None:
    assert figures_by_text(TEXTS[:1], lambda language: [_metric(language)]) == {}
    assert averaged({"equal": 1.0}, [_metric("")], "texts") == {"equal": 1.0}


def test_tags_are_for_the_model_only() -> None:
    text = HeldOut(("en", "de"), ("<2de>", "<bt>"), ("<x>", "<y>"))
    assert text.tagged(["Hi.", ""]) == ["<2de><bt> Hi.", ""]
    assert text.untagged(["<x> <y> Hallo.", "<y>Hallo", "Hallo <x>"]) == [
        "Hallo.",
        "Hallo",
        "Hallo <x>",
    ]
    assert HeldOut(("en", "de")).tagged(["a"]) == ["a"]
