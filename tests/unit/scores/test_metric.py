"""Metrics by name: their directions, and those from outside ds_seq."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ds_seq.errors import UserError
from ds_seq.names import TEXT_METRICS
from ds_seq.plugins import trusting
from ds_seq.scores.metric import METRICS, Measured, Metric, find_metric, measure
from ds_seq.scores.scoring import Scorer
from ds_seq.scores.significance import Resampling, score_systems

REFERENCES = ["The cat sat on a mat.", "One small house.", "Yes indeed", "He said: go away!"]
WORSE = ["The cat sat on the mat.", "One house.", "No", "He said go!"]
HERE = "tests.unit.scores.test_metric"


def letters(target_lang: str) -> Metric:
    """A metric from outside: letters too many or too few."""

    def compute(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        pairs = zip(hypotheses, references[0], strict=True)
        return Measured(float(sum(abs(len(a) - len(b)) for a, b in pairs)), f"lang:{target_lang}")

    return Metric("letters", higher_is_better=False, compute=compute, label="Letters")


def nothing(target_lang: str) -> str:
    """No metric at all."""
    return target_lang


def test_each_name_of_the_config_has_a_metric_of_that_name() -> None:
    assert set(METRICS) == set(TEXT_METRICS)
    assert [find_metric(name, "en", "x").name for name in METRICS] == list(METRICS)


@pytest.mark.parametrize("name", [*METRICS, f"{HERE}:letters"])
def test_a_perfect_text_is_better_than_a_worse_one(name: str) -> None:
    with trusting([f"{HERE}:letters"]):
        metric = find_metric(name, "en", "x")
    perfect, worse = (metric.score(text, [REFERENCES]).value for text in (REFERENCES, WORSE))
    assert (perfect > worse) is metric.higher_is_better
    assert perfect == pytest.approx(100.0 if metric.higher_is_better else 0.0)


@pytest.mark.parametrize("name", METRICS)
def test_a_measured_value_is_the_score(name: str) -> None:
    metric = find_metric(name, "en", "x")
    score = metric.score(WORSE, [REFERENCES])
    assert metric.compute(WORSE, [REFERENCES]) == (score.value, score.signature)
    assert score.signature.startswith("nrefs:1|")


def test_the_default_ones_are_those_of_the_scorer() -> None:
    ours = measure([find_metric(name, "de", "x") for name in ("bleu", "chrf")], WORSE, REFERENCES)
    assert ours == Scorer("de")(WORSE, REFERENCES)


def test_one_from_outside_is_given_the_language_and_may_have_no_signature() -> None:
    with trusting([f"{HERE}:letters"]):
        metric = find_metric(f"{HERE}:letters", "de", "x")
    assert str(metric.score(WORSE, [REFERENCES])) == "Letters|lang:de = 22.00"
    plain = Metric("plain", True, lambda hypotheses, references: Measured(3.0))
    assert str(plain.score(WORSE, [REFERENCES])) == "plain = 3.00"


@pytest.mark.parametrize("paired", [None, "bootstrap"])
def test_no_resamples_of_a_plain_function(paired: str | None) -> None:
    resampling = Resampling(confidence=True, paired=paired)  # type: ignore[arg-type]
    systems = {"a": WORSE, "b": REFERENCES}
    with pytest.raises(UserError, match="letters: supports neither --confidence nor --paired"):
        score_systems(systems, [REFERENCES], [letters("en")], resampling)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blue", r"--metrics: no metric 'blue' \(did you mean 'bleu'\?\)"),
        ("no_lab:Blue", "--metrics: cannot import 'no_lab'"),
        (f"{HERE}:lettres", "--metrics: module .* has no 'lettres' .did you mean 'letters'"),
        (f"{HERE}:nothing", "--metrics: .*:nothing gave str, not a .*Metric"),
    ],
)
def test_what_is_no_metric_is_refused(name: str, words: str) -> None:
    trusted = [name] if ":" in name else []
    with trusting(trusted), pytest.raises(UserError, match=words):
        find_metric(name, "en", "--metrics")
