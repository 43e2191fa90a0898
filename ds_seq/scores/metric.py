"""Metrics by name: how good a text is against references, and whether more of it is better.

A metric from outside ds_seq is a callable that is given the language code of the text:

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
    """A value, and how it was computed; the latter may be empty."""

    value: float
    signature: str = ""


Compute = Callable[[Sequence[str], Sequence[Sequence[str]]], Measured]
"""(hypotheses; for each reference, as many sentences) -> value of the whole text."""


@dataclass(frozen=True)
class Metric:
    """One figure of quality.

    Attributes:
        name: key of the figure in logs and files.
        higher_is_better: its direction.
        compute: measures a text.
        needs: what it compares; `text` is detokenized hypotheses and raw references. A task may
            have other things to compare.
        label: the name for readers; empty is `name`.
        corpus: the same as a metric of sacreBLEU, which can draw resamples; None where there is
            none.
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
            references: for each reference, as many sentences.
            resamples: number of bootstrap resamples for a confidence interval; at least 2.

        Raises:
            UserError: resamples of a metric that is none of sacreBLEU's kind.
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
    """Why a metric has no confidence interval."""
    return (
        f"{name}: has no resamples, so neither --confidence nor --paired; leave one out, or give "
        "its `Metric` a `corpus`"
    )


def from_sacrebleu(name: str, corpus: CorpusMetric, higher_is_better: bool = True) -> Metric:
    """A metric of sacreBLEU's kind, its numbers and signature unchanged."""

    def compute(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
        score = score_corpus(name, corpus, hypotheses, references)
        return Measured(score.value, score.signature)

    return Metric(name, higher_is_better, compute, corpus=corpus)


def _corpus(name: str, target_lang: str, *, higher_is_better: bool = True) -> Metric:
    return from_sacrebleu(name, build_metric(name, target_lang), higher_is_better)


def _rouge(name: str, target_lang: str) -> Metric:
    return from_sacrebleu(name, rouge_metric(name, target_lang))


METRICS: Mapping[str, Callable[[str], Metric]] = {
    "bleu": partial(_corpus, "bleu"),
    "chrf": partial(_corpus, "chrf"),
    "chrf++": partial(_corpus, "chrf++"),
    "ter": partial(_corpus, "ter", higher_is_better=False),
    **{name: partial(_rouge, name) for name in ROUGE},
}
"""Builders by name; each is given a language code."""


def find_metric(name: str, target_lang: str, where: str) -> Metric:
    """The metric that ``name`` stands for, one of `METRICS` or `package.module:Name`.

    Args:
        name: what the config or the command line names.
        target_lang: language code of the text; empty if unknown.
        where: the setting that names it, for messages.

    Raises:
        UserError: there is none of that name, or a package it needs is not installed.
    """
    metric = find_plugin("metric", name, METRICS, where)(target_lang)
    if not isinstance(metric, Metric):
        raise UserError(
            f"{where}: {name} gave {type(metric).__name__}, not a ds_seq.scores.metric.Metric"
        )
    return metric


def measure(
    metrics: Sequence[Metric], hypotheses: Sequence[str], references: Sequence[str]
) -> list[CorpusScore]:
    """All scores of detokenized text against raw text, one reference each.

    Raises:
        UserError: the two sides have different numbers of lines, or none.
    """
    check_pairs(hypotheses, references)
    return [metric.score(hypotheses, [references]) for metric in metrics]
