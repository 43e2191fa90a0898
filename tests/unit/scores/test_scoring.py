"""Our numbers are sacreBLEU's own, as its command prints them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sacrebleu.metrics.base import Metric

from ds_seq.errors import UserError
from ds_seq.scores.scoring import (
    CORPUS_METRICS,
    TOKENISED,
    Scorer,
    build_metric,
    score_corpus,
)

HYPOTHESES = ["The cat sat on the mat .", "A small house.", "Yes", "He said: \u201cgo!\u201d"]
REFERENCES = ["The cat sat on a mat.", "One small house.", "Yes", "He said: \u201cgo away!\u201d"]


def sacrebleu(folder: Path, *options: str) -> list[dict[str, object]]:
    """What the command of sacreBLEU says about the texts above."""
    for name, lines in (("hyp", HYPOTHESES), ("ref", REFERENCES)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", folder / "ref", "-i", folder / "hyp"]
    done = subprocess.run(
        [*command, "-w", "6", "--force", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def test_scores_and_signatures_are_those_of_the_sacrebleu_command(tmp_path: Path) -> None:
    expected = sacrebleu(tmp_path, "-m", "bleu", "chrf")
    found = Scorer()(HYPOTHESES, REFERENCES)
    assert [s.name for s in found] == ["bleu", "chrf"]
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < ours.value < 100
        assert round(ours.value, 6) == theirs["score"]
        assert (ours.label, ours.signature) == (theirs["name"], theirs["signature"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chrf++", ["-m", "chrf", "--chrf-word-order", "2"]),
        ("ter", ["-m", "ter"]),
        (TOKENISED, ["-m", "bleu", "--tokenize", "none"]),
    ],
)
def test_other_metrics_and_confidence_too(tmp_path: Path, name: str, options: list[str]) -> None:
    (theirs,) = sacrebleu(tmp_path, *options, "--confidence", "--confidence-n", "50")
    ours = score_corpus(name, build_metric(name, ""), HYPOTHESES, [REFERENCES], resamples=50)
    assert 0 < ours.value < 100
    assert round(ours.value, 6) == theirs["score"]
    assert ours.signature == theirs["signature"]
    assert ours.mean is not None and ours.ci is not None and ours.ci > 0
    assert round(ours.mean, 6) == theirs["confidence_mean"]
    assert round(ours.ci, 6) == theirs["confidence_var"]


def test_confidence_where_nothing_is_right() -> None:
    score = score_corpus("chrf", build_metric("chrf", ""), ["x"], [["ab"]], resamples=10)
    assert (score.value, score.mean, score.ci) == (0.0, 0.0, 0.0)


def test_tokenized_bleu_is_never_called_bleu() -> None:
    score = score_corpus(TOKENISED, build_metric(TOKENISED, "zh"), HYPOTHESES, [REFERENCES])
    assert score.name != "bleu"
    assert score.label == "tokenized BLEU (not comparable)"
    assert score.text.startswith("tokenized BLEU (not comparable)|nrefs:1|")
    assert "tok:none" in score.signature


def test_perfect_and_hopeless() -> None:
    assert [round(s.value, 6) for s in Scorer()(REFERENCES, REFERENCES)] == [100.0, 100.0]
    assert Scorer()(["x"] * 4, REFERENCES)[0].value < 1
    assert Scorer()([""] * 4, REFERENCES)[0].value == 0


def test_chinese_is_split_into_characters() -> None:
    hypothesis, reference = ["今天天气很好。"], ["今天天气非常好。"]
    bleu = Scorer("zh")(hypothesis, reference)[0]
    assert "tok:zh" in bleu.signature
    assert bleu.value > 10 > Scorer()(hypothesis, reference)[0].value


def test_words_of_a_language_that_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target_lang: str) -> Metric:
        raise RuntimeError("Please install:\n\n  pip install it\n")

    monkeypatch.setitem(CORPUS_METRICS, "bleu", refuse)
    with pytest.raises(UserError) as refused:
        Scorer("ja")
    why = "cannot split text in 'ja' into words; install the package: pip install 'it', or use"
    assert str(refused.value).startswith(f"bleu: {why}")


def test_unequal_and_empty_texts_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 translations but 3 reference"):
        Scorer()(HYPOTHESES, REFERENCES[:3])
    with pytest.raises(UserError, match="empty"):
        Scorer()([], [])
