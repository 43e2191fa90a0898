"""Corpus scores of detokenized translations, with the signatures that make them comparable.

Post, 2018, "A Call for Clarity in Reporting BLEU Scores", https://arxiv.org/abs/1804.08771;
Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation"; Popovic, 2017,
"chrF++: words helping character n-grams"; Snover et al., 2006, "A Study of Translation Edit Rate
with Targeted Human Annotation".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from ds_seq.errors import UserError

TOKENISED = "tokenized_bleu"

_LABELS = {TOKENISED: "tokenized BLEU (not comparable)"}
"""Where our name for a score is not sacreBLEU's."""


@dataclass(frozen=True)
class CorpusScore:
    """One score of a whole text.

    Attributes:
        name: `bleu`, `chrf` and so on, for programs.
        value: from 0 to 100 (TER may be more).
        signature: how it was computed, as sacreBLEU writes it.
        text: label, signature, value and details in one line, as sacreBLEU writes them.
        label: the name for readers.
        mean: of the score over bootstrap resamples of the sentences.
        ci: half the width of the 95% confidence interval around `mean`.
        p_value: of the difference to the first system, by a paired test.
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


def _bleu(target_lang: str) -> Metric:
    # force: text that ends in " ." is scored as it is; the warning would come at every validation
    return BLEU(trg_lang=target_lang, force=True)


CORPUS_METRICS: dict[str, Callable[[str], Metric]] = {
    "bleu": _bleu,
    "chrf": lambda target_lang: CHRF(),
    "chrf++": lambda target_lang: CHRF(word_order=2),
    "ter": lambda target_lang: TER(),
    TOKENISED: lambda target_lang: BLEU(tokenize="none", force=True),
}
DEFAULT_METRICS = ("bleu", "chrf")


def build_metric(name: str, target_lang: str) -> Metric:
    """The metric of that name in `CORPUS_METRICS`.

    Args:
        name: one of `CORPUS_METRICS`.
        target_lang: language code; BLEU splits words of Chinese, Japanese and Korean in ways of
            their own.

    Raises:
        UserError: the words of that language need a package that is not installed.
    """
    try:
        return CORPUS_METRICS[name](target_lang)
    except (ImportError, RuntimeError) as error:  # MeCab is an extra of sacreBLEU
        why = " ".join(str(error).split())  # sacreBLEU's advice has many lines
        raise UserError(f"cannot score text in {target_lang!r}: {why}") from error


def label(name: str, metrics_own: str) -> str:
    """How readers see a metric: its own name, unless that would mislead."""
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
        name: of the metric, for `CorpusScore.name`.
        metric: computes the score.
        hypotheses: one sentence each.
        references: for each reference, as many sentences.
        resamples: draw so many bootstrap resamples for a confidence interval; at least 2.
    """
    result = metric.corpus_score(hypotheses, references, n_bootstrap=resamples or 1)
    result.name = label(name, result.name)
    signature = str(metric.get_signature())
    # the form that sacreBLEU's own command prints with `--format text`
    text = result.format(width=2, score_only=False, signature=signature)
    mean = ci = None
    if resamples:
        # The JSON form is the public way to these two; it leaves them out where the mean is 0.
        fields = json.loads(result.format(width=12, signature=signature, is_json=True))
        mean, ci = (float(fields.get(f"confidence_{key}", 0.0)) for key in ("mean", "var"))
    return CorpusScore(name, float(result.score), signature, text, result.name, mean, ci)


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse two sides of different numbers of lines, or of none, with a `UserError`."""
    if len(hypotheses) != len(references):
        raise UserError(
            f"there are {len(hypotheses):,} translations but {len(references):,} reference "
            "lines; give the reference of the same text"
        )
    if not references:
        raise UserError("there is no text to score: translations and reference are empty")


class Scorer:
    """BLEU and chrF of a text.

    Args:
        target_lang: language code; see `build_metric`.

    Raises:
        UserError: the words of that language need a package that is not installed.
    """

    def __init__(self, target_lang: str = "") -> None:
        self._metrics = {name: build_metric(name, target_lang) for name in DEFAULT_METRICS}

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[CorpusScore]:
        """Score detokenized translations against raw text, one reference each.

        Raises:
            UserError: the two sides have different numbers of lines, or none.
        """
        check_pairs(hypotheses, references)
        return [
            score_corpus(name, metric, hypotheses, [references])
            for name, metric in self._metrics.items()
        ]
