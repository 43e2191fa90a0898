"""ROUGE and COMET of whole texts: means over sentences that sacreBLEU can resample."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator

from ds_seq.errors import UserError
from ds_seq.scores import sentence_means
from ds_seq.scores.metric import find_metric
from ds_seq.scores.rouge import ROUGE, sentence_lines
from ds_seq.scores.scoring import CorpusScore, score_corpus
from ds_seq.scores.sentence_means import comet_metric, rouge_metric

HYPOTHESES = ["Cats were jumping. The dog slept.", "It rained in Paris", "nothing alike"]
REFERENCES = ["The dog was sleeping. A cat jumped.", "In Paris it rained a lot.", "quite different"]


def rouge(
    hypotheses: Sequence[str], *references: Sequence[str], language: str = "en"
) -> dict[str, CorpusScore]:
    return {
        name: score_corpus(name, rouge_metric(name, language), hypotheses, references, resamples=20)
        for name in ROUGE
    }


def test_the_mean_of_the_f_measures_of_the_package() -> None:
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    found = rouge(HYPOTHESES, REFERENCES)
    assert list(found) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    rows = [
        scorer.score(reference.replace(". ", ".\n"), hypothesis.replace(". ", ".\n"))
        for hypothesis, reference in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    for name, score in found.items():
        expected = 100 * sum(row[name].fmeasure for row in rows) / len(rows)
        assert 0 < expected < 100
        assert score.value == pytest.approx(expected)
        assert score.mean == pytest.approx(expected, abs=30) and score.ci
        assert "nrefs:1|bs:20|seed:" in score.signature
        assert "stem:porter" in score.signature and "rouge-score-" in score.signature
    # swapped sentences: seen as one sequence, half of the words are out of order
    assert found["rougeLsum"].value > found["rougeL"].value + 5


def test_intervals_are_those_of_the_packages_own_aggregator() -> None:
    """Its middle is the median of resampled means; ours is the mean, with sacreBLEU's interval."""
    draw = random.Random(1)
    words = "the dogs cats slept jumping in Paris rains a quickly".split()
    references = [" ".join(draw.choices(words, k=8)) + ". It rained." for _ in range(60)]
    hypotheses = [" ".join(draw.sample(line.split(), draw.randint(2, 9))) for line in references]
    for name in ROUGE:
        scorer = RougeScorer([name], use_stemmer=True)
        np.random.seed(1)  # the package draws from the global generator
        aggregator = BootstrapAggregator()
        for pair in zip(references, hypotheses, strict=True):
            aggregator.add_scores(scorer.score(*(text.replace(". ", ".\n") for text in pair)))
        low, middle, high = (100 * part.fmeasure for part in aggregator.aggregate()[name])
        score = score_corpus(name, rouge_metric(name, "en"), hypotheses, [references], 1000)
        assert score.mean is not None and score.ci is not None and score.ci > 0.5
        assert score.value == pytest.approx(middle, abs=0.2 * score.ci)
        assert score.mean - score.ci == pytest.approx(low, abs=0.2 * score.ci)
        assert score.mean + score.ci == pytest.approx(high, abs=0.2 * score.ci)


def test_stemming_is_an_option() -> None:
    stemmed, whole = (
        find_metric("rouge1", "en", "metrics", stemmer=stemmer).score(["cats slept"], [["a cat"]])
        for stemmer in (True, False)
    )
    assert (stemmed.value, whole.value) == (50.0, 0.0)
    assert "stem:porter" in stemmed.signature and "stem:no" in whole.signature


def test_of_several_references_the_closest_counts() -> None:
    first, second, both = (
        rouge(HYPOTHESES, *texts)["rougeL"]
        for texts in ([REFERENCES], [HYPOTHESES], [REFERENCES, HYPOTHESES])
    )
    assert first.value < second.value == both.value == pytest.approx(100)
    assert "nrefs:2" in both.signature


def test_other_languages_keep_their_letters_and_are_not_stemmed() -> None:
    score = rouge(["Это большой дом"], ["это Дом"], language="ru")["rouge1"]
    assert score.value == pytest.approx(80)
    assert "tok:13a-lower|stem:no" in score.signature
    assert rouge(["cats"], ["cat"], language="de")["rouge1"].value == 0


def test_without_a_language_it_does_not_guess() -> None:
    with pytest.raises(UserError, match="--target-lang"):
        rouge_metric("rouge1", "")


def test_where_sentences_end() -> None:
    assert (
        sentence_lines(" One. Two! “Three?” Four 3.5 x.y") == "One.\nTwo!\n“Three?”\nFour 3.5 x.y"
    )
    assert sentence_lines("a <n> b<n>c") == "a\nb\nc"
    assert sentence_lines("一。二").split("\n") == ["一。", "二"]


class FakeComet:
    """Stands in for the package: a hypothesis is worth the share of the letters it has kept."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def predict(self, texts: list[dict[str, str]], batch_size: int, gpus: int) -> SimpleNamespace:
        self.seen = texts
        return SimpleNamespace(scores=[len(row["mt"]) / len(row["ref"]) for row in texts])


def test_comet_is_the_mean_of_what_the_package_says(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, module = FakeComet(), ModuleType("comet")
    loaded = {"download_model": lambda name: f"/models/{name}"}
    loaded["load_from_checkpoint"] = {"/models/a/b": fake}.__getitem__  # type: ignore[assignment]
    vars(module).update(loaded)
    monkeypatch.setitem(sys.modules, "comet", module)
    monkeypatch.setattr(sentence_means, "version", lambda package: "1.2")
    metric = comet_metric("a/b", ["s", "t"])
    score = score_corpus("comet", metric, ["xx", "y"], [["xxxx", "yy"]])
    assert score.value == pytest.approx(50)
    assert fake.seen[1] == {"src": "t", "mt": "y", "ref": "yy"}
    assert score.text == "COMET|nrefs:1|model:b|version:unbabel-comet-1.2 = 50.00"
    with pytest.raises(UserError, match="cannot load the model 'c'"):
        monkeypatch.setattr(module, "load_from_checkpoint", {}.__getitem__)
        comet_metric("c", [])


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("comet", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="`pip install unbabel-comet`"):
        comet_metric("a/b", [])
    with pytest.raises(UserError, match="`pip install rouge-score`"):
        rouge_metric("rouge1", "en")


def test_another_package_called_comet_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comet", ModuleType("comet"))
    with pytest.raises(UserError, match="`pip install unbabel-comet`"):
        comet_metric("a/b", [])
