"""Corpus scores of detokenized translations, with signatures that make them comparable.

Post, 2018, "A Call for Clarity in Reporting BLEU Scores", https://arxiv.org/abs/1804.08771;
Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation"; Popovic, 2017,
"chrF++: words helping character n-grams"; Snover et al., 2006, "A Study of Translation Edit Rate
with Targeted Human Annotation".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF, CHRFScore
from sacrebleu.metrics.ter import TER

from ds_seq.errors import UserError
from ds_seq.names import DEFAULT_METRICS
from ds_seq.scores.languages import bleu_tokenizer

TOKENISED = "tokenized_bleu"

_LABELS = {TOKENISED: "tokenized BLEU (not comparable)"}
"""Display names that differ from sacreBLEU's."""


@dataclass(frozen=True)
class CorpusScore:
    """The score of a whole text.

    Attributes:
        name: name of the metric for programs, such as `bleu` or `chrf`.
        value: value of the score, from 0 to 100 (TER may be higher).
        signature: how the score was computed, in sacreBLEU's format.
        text: label, signature, value and details in one line, in sacreBLEU's format.
        label: display name of the metric.
        mean: mean of the score over bootstrap resamples of the sentences, or None.
        ci: half the width of the 95% confidence interval around `mean`, or None.
        p_value: p-value of the difference from the first system in a paired test, or None.
    """

    name: str
    value: float
    signature: str
    text: str
    label: str
    mean: float | None = None
    ci: float | None = None
    p_value: float | None = None

    def __str__(self) -> str:
        return self.text


def _bleu(target_lang: str, sentences: bool = False) -> BLEU:
    # force suppresses the warning about tokenized text, which would appear at every validation
    return BLEU(tokenize=bleu_tokenizer(target_lang), effective_order=sentences, force=True)


def _ter(target_lang: str) -> TER:
    tokenizer = bleu_tokenizer(target_lang)
    if tokenizer == "char":
        raise UserError(
            f"ter: cannot split text in {target_lang!r} into words; use bleu (of characters) or "
            "chrf"
        )
    # as `sacrebleu --ter-normalized --ter-asian-support`: each Chinese or Japanese character
    by_character = tokenizer in ("zh", "ja-mecab")
    return TER(normalized=by_character, asian_support=by_character)


class _Chrf(CHRF):
    """chrF that also has a mean over resamples if some of them have no match at all.

    sacreBLEU scores those 0.0 and others as float32 of numpy, which its mean cannot add up.
    """

    def _compute_score_from_stats(self, stats: list[Any]) -> CHRFScore:
        score = super()._compute_score_from_stats(stats)
        if score.score == 0.0:
            score.score = type(stats[0])(0.0)
        return score


CORPUS_METRICS: dict[str, Callable[[str], Metric]] = {
    "bleu": _bleu,
    "chrf": lambda target_lang: _Chrf(),
    "chrf++": lambda target_lang: _Chrf(word_order=2),
    "ter": _ter,
    TOKENISED: lambda target_lang: BLEU(tokenize="none", force=True),
}


def build_metric(name: str, target_lang: str) -> Metric:
    """Build the metric `name` of `CORPUS_METRICS`.

    Args:
        name: one of `CORPUS_METRICS`.
        target_lang: language code of the text; see `bleu_tokenizer`.

    Raises:
        UserError: the tokenization of that language needs a package that is not installed, or there
            is none for the metric.
    """
    with _explained(name, target_lang):
        return CORPUS_METRICS[name](target_lang)


def build_sentence_bleu(target_lang: str) -> BLEU:
    """Build BLEU for single sentences: n-grams longer than a sentence do not count.

    Raises:
        UserError: see `build_metric`.
    """
    with _explained("bleu", target_lang):
        return _bleu(target_lang, sentences=True)


@contextmanager
def _explained(name: str, target_lang: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError) as error:  # MeCab is an extra of sacreBLEU
        found = re.search(r"pip install (\S+)", str(error))  # in several lines of advice
        why = str(error) if found is None else f"install the package: pip install '{found[1]}'"
        raise UserError(
            f"{name}: cannot split text in {target_lang!r} into words; {why}, or use chrf, which "
            "needs no words"
        ) from error


def label(name: str, metrics_own: str) -> str:
    """Return the display name of a metric: sacreBLEU's name unless that would be misleading."""
    return _LABELS.get(name, metrics_own)


def score_corpus(
    name: str,
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    resamples: int | None = None,
) -> CorpusScore:
    """Score a text.

    Args:
        name: name of the metric, for `CorpusScore.name`.
        metric: metric that computes the score.
        hypotheses: one sentence each.
        references: for each reference, a list as long as `hypotheses`.
        resamples: number of bootstrap resamples for a confidence interval; at least 2.
    """
    result = metric.corpus_score(hypotheses, references, n_bootstrap=resamples or 1)
    result.name = label(name, result.name)
    signature = str(metric.get_signature())
    # the format of sacreBLEU's own command with `--format text`
    text = result.format(width=2, score_only=False, signature=signature)
    mean = ci = None
    if resamples:
        # Only the JSON format exposes mean and interval publicly; it omits them if the mean is 0.
        fields = json.loads(result.format(width=12, signature=signature, is_json=True))
        mean, ci = (float(fields.get(f"confidence_{key}", 0.0)) for key in ("mean", "var"))
    return CorpusScore(name, float(result.score), signature, text, result.name, mean, ci)


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Check that both sides have the same number of lines.

    Raises:
        UserError: the two sides have different numbers of lines, or no lines.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"there are {len(hypotheses):,} translations but {len(references):,} reference "
            "lines; give the reference for the same text"
        )
    if not references:
        raise UserError("there is no text to score: translations and reference are empty")


class Scorer:
    """BLEU and chrF of a text.

    Args:
        target_lang: language code of the text; see `build_metric`.

    Raises:
        UserError: the tokenization of that language needs a package that is not installed.
    """

    def __init__(self, target_lang: str = "") -> None:
        self._metrics = {name: build_metric(name, target_lang) for name in DEFAULT_METRICS}

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[CorpusScore]:
        """Score detokenized translations against raw text, one reference per sentence.

        Raises:
            UserError: the two sides have different numbers of lines, or no lines.
        """
        check_pairs(hypotheses, references)
        return [
            score_corpus(name, metric, hypotheses, [references])
            for name, metric in self._metrics.items()
        ]
