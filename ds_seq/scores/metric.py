"""Metrics by name: measures of a text against references, and whether higher values are better.

An external metric is a callable that takes the language code of the text:

    def letters(target_lang: str) -> Metric:
        return Metric("letters", higher_is_better=False, compute=wrong_letters)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sacrebleu.metrics.base import Metric as CorpusMetric

from ds_seq.errors import UserError
from ds_seq.plugins import find_plugin
from ds_seq.scores.rouge import ROUGE
from ds_seq.scores.scoring import CorpusScore, build_metric, check_pairs, score_corpus
from ds_seq.scores.sentence_means import rouge_metric

TEXT = "text"


class Measured(NamedTuple):
    """The value of a metric for a text."""

    value: float
    signature: str = ""
    """How the value was computed; may be empty."""


Compute = Callable[[Sequence[str], Sequence[Sequence[str]]], Measured]
"""Maps hypotheses, and a list of equal length per reference, to the value of the whole text."""


@dataclass(frozen=True)
class Metric:
    """A measure of text quality.

    Attributes:
        name: key of the metric in logs and files.
        higher_is_better: whether higher values are better.
        compute: function that measures a text.
        needs: kind of data that the metric compares; `text` means detokenized hypotheses and raw
            references. A task may define other kinds.
        label: display name; if empty, `name` is displayed.
        corpus: the same metric as a sacreBLEU metric, which supports bootstrap resampling, or None.
    """

    name: str
    higher_is_better: bool
    compute: Compute
    needs: str = TEXT
    label: str = ""
    corpus: CorpusMetric | None = None

    def score(
        self,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        resamples: int | None = None,
    ) -> CorpusScore:
        """Score a text.

        Args:
            hypotheses: one sentence each.
            references: for each reference, a list as long as `hypotheses`.
            resamples: number of bootstrap resamples for a confidence interval; at least 2.

        Raises:
            UserError: `resamples` is given but the metric does not support resampling.
        """
        if self.corpus is not None:
            return score_corpus(self.name, self.corpus, hypotheses, references, resamples)
        if resamples:
            raise UserError(no_resamples(self.name))
        value, signature = self.compute(hypotheses, references)
        label = self.label or self.name
        text = f"{label}|{signature} = {value:.2f}" if signature else f"{label} = {value:.2f}"
        return CorpusScore(self.name, float(value), signature, text, label)


def no_resamples(name: str) -> str:
    """Return the error message for a metric that does not support resampling."""
    return (
        f"{name}: supports neither --confidence nor --paired; omit the option, or give its "
        "`Metric` a `corpus`"
    )


def from_sacrebleu(name: str, corpus: CorpusMetric, higher_is_better: bool = True) -> Metric:
    """Wrap a sacreBLEU metric; its values and signature stay the same."""

    def compute(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        score = score_corpus(name, corpus, hypotheses, references)
        return Measured(score.value, score.signature)

    return Metric(name, higher_is_better, compute, corpus=corpus)


def _corpus(name: str, target_lang: str, *, higher_is_better: bool = True) -> Metric:
    return from_sacrebleu(name, build_metric(name, target_lang), higher_is_better)


def _rouge(name: str, target_lang: str, *, stemmer: bool = True) -> Metric:
    return from_sacrebleu(name, rouge_metric(name, target_lang, stemmer))


METRICS: Mapping[str, Callable[[str], Metric]] = {
    "bleu": partial(_corpus, "bleu"),
    "chrf": partial(_corpus, "chrf"),
    "chrf++": partial(_corpus, "chrf++"),
    "ter": partial(_corpus, "ter", higher_is_better=False),
    **{name: partial(_rouge, name) for name in ROUGE},
}
"""Builders by name; each takes a language code."""


def find_metric(name: str, target_lang: str, where: str, stemmer: bool = True) -> Metric:
    """Return the metric `name`, one of `METRICS` or `package.module:Name`.

    Args:
        name: name from the config or the command line.
        target_lang: language code of the text; empty if unknown.
        where: setting that contains the name, for messages.
        stemmer: see `ds_seq.scores.rouge.build_rouge`; of no concern to other metrics.

    Raises:
        UserError: there is no such metric, or it needs a package that is not installed.
    """
    make = find_plugin("metric", name, METRICS, where)
    if name in ROUGE and not stemmer:
        make = partial(_rouge, name, stemmer=False)
    metric = make(target_lang)
    if not isinstance(metric, Metric):
        raise UserError(
            f"{where}: {name} gave {type(metric).__name__}, not a ds_seq.scores.metric.Metric"
        )
    return metric


def measure(
    metrics: Sequence[Metric], hypotheses: Sequence[str], references: Sequence[str]
) -> list[CorpusScore]:
    """Score detokenized text against raw text with each metric, one reference per sentence.

    Raises:
        UserError: the two sides have different numbers of lines, or no lines.
    """
    check_pairs(hypotheses, references)
    return [metric.score(hypotheses, [references]) for metric in metrics]
