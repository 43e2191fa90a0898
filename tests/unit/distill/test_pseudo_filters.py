"""Similarity of single sentences, against sacreBLEU, rouge-score and numbers by hand."""

from __future__ import annotations

import pickle
import sys

import pytest
import sacrebleu

from ds_seq.distill.filters import Filters, Similarity
from ds_seq.errors import UserError
from ds_seq.names import FILTER_METRICS
from ds_seq.scores import scoring

REFERENCE = "the cat sat on the mat"


def similarity(metric: str, hypothesis: str, reference: str, language: str = "en") -> float:
    (value,) = Similarity([metric], language)(hypothesis, reference)
    return value


@pytest.mark.parametrize("metric", FILTER_METRICS)
@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_the_reference_itself_is_perfect(metric: str, language: str) -> None:
    text = {"en": REFERENCE, "de": "Süße Äpfel, und Öl!", "zh": "我们 喜欢 机器翻译"}[language]
    assert similarity(metric, text, text, language) == pytest.approx(100.0)
    other = {"en": "xyz", "de": "xyz", "zh": "他"}[language]
    assert similarity(metric, other, text, language) < 5.0


@pytest.mark.parametrize("hypothesis", ["the cat", "a cat sat on a mat .", "mat the on"])
def test_bleu_and_chrf_are_those_of_sacrebleu(hypothesis: str) -> None:
    bleu = sacrebleu.sentence_bleu(hypothesis, [REFERENCE], use_effective_order=True).score
    assert similarity("bleu", hypothesis, REFERENCE) == pytest.approx(bleu)
    chrf = sacrebleu.sentence_chrf(hypothesis, [REFERENCE]).score
    assert similarity("chrf", hypothesis, REFERENCE) == pytest.approx(chrf)


def test_rouge_by_hand() -> None:
    hypothesis = "the cat sat down"
    precision, recall = 3 / 4, 3 / 6  # "the", "cat", "sat", which are also in order
    f_measure = 200 * precision * recall / (precision + recall)
    assert similarity("rouge1", hypothesis, REFERENCE) == pytest.approx(f_measure)
    assert similarity("rougeL", hypothesis, REFERENCE) == pytest.approx(f_measure)
    precision, recall = 2 / 3, 2 / 5  # "the cat", "cat sat"
    f_measure = 200 * precision * recall / (precision + recall)
    assert similarity("rouge2", hypothesis, REFERENCE) == pytest.approx(f_measure)
    assert similarity("rougeL", "mat the on", REFERENCE) == pytest.approx(200 * (2 / 9))


def test_english_words_are_stemmed() -> None:
    assert similarity("rouge1", "cats jumping", "cat jumps", "en") == pytest.approx(100.0)
    assert similarity("rouge1", "cats jumping", "cat jumps", "de") == 0.0


@pytest.mark.parametrize("metric", [name for name in FILTER_METRICS if name.startswith("rouge")])
def test_rouge_supports_letters_beyond_english(metric: str) -> None:
    """The package's own words would be empty here: it keeps a to z only."""
    assert similarity(metric, "это дом большой", "это дом большой", "ru") == pytest.approx(100.0)
    assert similarity(metric, "нет", "это дом", "ru") == 0.0
    assert similarity(metric, "हम घर जाते हैं", "हम घर जाते हैं", "hi") == pytest.approx(100.0)


def test_metrics_keep_the_requested_order() -> None:
    names = ["rougeL", "bleu"]
    both = Similarity(names, "en")("the cat sat down", REFERENCE)
    assert both == [similarity(name, "the cat sat down", REFERENCE) for name in names]
    assert both[0] != both[1]


def test_it_travels_to_other_processes() -> None:
    original = Similarity(FILTER_METRICS, "de")
    copied = pickle.loads(pickle.dumps(original))
    text = ("ein großes Haus", "das große Haus")
    assert copied(*text) == original(*text)


def test_without_the_package_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    assert Similarity(["bleu", "chrf"], "en")("a", "a")
    with pytest.raises(UserError, match="rouge2: .* `pip install rouge-score`"):
        Similarity(["rouge2"], "en")


def test_word_tokenizers_are_required_only_where_they_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("\nPlease install MeCab:\n\n  pip install it\n")

    monkeypatch.setattr(scoring, "BLEU", refuse)
    assert Similarity([], "ja")("a", "a") == []
    assert Similarity(["chrf"], "ja")("a", "a") == [100.0]
    for metric in ("bleu", "rouge1"):
        with pytest.raises(UserError) as refused:
            Similarity([metric], "ja")
        why = "install the package: pip install 'it'"
        assert f"cannot split text in 'ja' into words; {why}" in str(refused.value)


def test_metrics_that_are_needed() -> None:
    assert Filters(min_score=-1.0, max_ratio=2.0).metrics == []
    assert Filters(min_metric={"rouge2": 10.0}, best_metric="bleu").metrics == ["bleu", "rouge2"]
    assert Filters(min_metric={"chrf": 1.0}, best_metric="chrf").metrics == ["chrf"]
