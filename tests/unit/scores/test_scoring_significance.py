"""Confidence intervals and paired tests; tests/system/test_score.py holds them to sacreBLEU's."""

from __future__ import annotations

import os

import pytest

from ds_seq.names import PairedTestName
from ds_seq.scores.metric import Metric, from_sacrebleu
from ds_seq.scores.scoring import CORPUS_METRICS, CorpusScore, build_metric
from ds_seq.scores.significance import Resampling, score_systems

REFERENCE = [
    f"Line {n} has {n * n} words, or {'few' if n % 2 else 'many'} more." for n in range(40)
]
GOOD = [line.replace("words", "word") if n % 4 == 0 else line for n, line in enumerate(REFERENCE)]
BAD = [line.replace("has", "is").replace("or", "so") for line in REFERENCE]
SYSTEMS = {"good": GOOD, "same": list(GOOD), "bad": BAD}


def named(name: str) -> Metric:
    return from_sacrebleu(name, build_metric(name, ""))


def scores(resampling: Resampling, metric: str = "chrf") -> dict[str, CorpusScore]:
    found = score_systems(SYSTEMS, [REFERENCE], [named(metric)], resampling)
    assert list(found) == list(SYSTEMS)
    return {system: score for system, (score,) in found.items()}


@pytest.mark.parametrize("paired", ["bootstrap", "randomization"])
@pytest.mark.parametrize("metric", ["chrf", "ter", "tokenized_bleu"])
def test_p_values_tell_systems_apart(paired: PairedTestName, metric: str) -> None:
    found = scores(Resampling(paired=paired, samples=200), metric)
    assert found["good"].p_value is None  # the baseline
    assert found["same"].p_value == 1  # sacreBLEU itself says 1 / 201
    bad = found["bad"].p_value
    assert bad is not None and bad < 0.02
    assert ("not comparable" in found["bad"].label) == (metric == "tokenized_bleu")


def test_the_bootstrap_brings_the_confidence_of_a_single_system_along() -> None:
    """The same resamples: the number does not depend on how it is requested."""
    paired = scores(Resampling(paired="bootstrap", samples=50))
    alone = scores(Resampling(confidence=True, samples=50))
    for system in SYSTEMS:
        assert paired[system].value == alone[system].value
        assert paired[system].mean == pytest.approx(alone[system].mean, abs=1e-9)
        assert paired[system].ci == pytest.approx(alone[system].ci, abs=1e-9)
    assert alone["bad"].ci and alone["bad"].p_value is None


def test_randomization_has_confidence_if_requested() -> None:
    without = scores(Resampling(paired="randomization", samples=50))
    assert all(score.ci is None for score in without.values())
    both = scores(Resampling(confidence=True, paired="randomization", samples=50))
    assert all(score.ci for score in both.values())
    assert both["bad"].p_value == without["bad"].p_value


def test_the_seed_decides_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "77")
    intervals = [
        [(score.mean, score.ci) for score in scores(Resampling(True, paired, 50, seed)).values()]
        for paired in (None, "bootstrap", "randomization")
        for seed in (1, 2, 1)
    ]
    for first, other, again in zip(*[iter(intervals)] * 3, strict=True):
        assert first == again
        assert all(one != two for one, two in zip(first, other, strict=True))
    assert os.environ["SACREBLEU_SEED"] == "77"
    monkeypatch.delenv("SACREBLEU_SEED")
    scores(Resampling(confidence=True, samples=2))
    assert "SACREBLEU_SEED" not in os.environ


def test_each_metric_of_each_system_in_order() -> None:
    metrics = [named(name) for name in CORPUS_METRICS]
    for resampling in (Resampling(), Resampling(paired="bootstrap", samples=2)):
        found = score_systems({"a": GOOD, "b": REFERENCE}, [REFERENCE], metrics, resampling)
        for system in ("a", "b"):
            assert [score.name for score in found[system]] == list(CORPUS_METRICS)
        perfect = [score.value for score in found["b"]]
        assert perfect == pytest.approx([100, 100, 100, 0, 100])
        assert all(score.value != best for score, best in zip(found["a"], perfect, strict=True))
