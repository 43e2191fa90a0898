"""Metrics of a whole text, as commands choose and compute them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ds_seq.commands.arguments.metrics import ROUGE_GROUP
from ds_seq.errors import UserError
from ds_seq.names import DEFAULT_METRICS
from ds_seq.plugins import trust
from ds_seq.scores.metric import TEXT, Metric, find_metric, from_sacrebleu
from ds_seq.scores.rouge import ROUGE
from ds_seq.scores.scoring import CorpusScore, check_pairs
from ds_seq.scores.sentence_means import comet_metric
from ds_seq.scores.significance import Resampling, score_systems

COMET = "comet"


def text_metrics(names: Sequence[str], target_lang: str, *, stemmer: bool = True) -> list[Metric]:
    """Return the metrics that `--metrics` names, all kinds of ROUGE for `rouge`.

    Args:
        names: names, each a known one or `package.module:Name`.
        target_lang: language code of the text.
        stemmer: whether ROUGE stems English words.

    Raises:
        UserError: there is no such metric, it compares something else than text, or it needs a
            package that is not installed; or nothing stems.
    """
    if not stemmer and not any(name.startswith(ROUGE_GROUP) for name in names):
        raise UserError("--no-stemmer: only used by rouge; leave it out, or add --metrics rouge")
    trust(name for name in names if ":" in name)  # the user has typed them
    metrics = {}
    for name in names:
        for member in ROUGE if name == ROUGE_GROUP else (name,):
            metric = find_metric(member, target_lang, "--metrics", stemmer=stemmer)
            if metric.needs != TEXT:
                raise UserError(
                    f"{member}: compares {metric.needs}, but only text is available; use another "
                    "metric"
                )
            metrics[member] = metric
    return list(metrics.values())


def chosen_metrics(
    names: Sequence[str],
    target_lang: str,
    source: Sequence[str],
    comet_model: str,
    *,
    stemmer: bool = True,
) -> list[Metric]:
    """Return the metrics that compare texts, COMET among them.

    Args:
        names: see `text_metrics`; `comet`, too.
        target_lang: language code of the text.
        source: lines of the source, for COMET; else empty.
        comet_model: name or path of COMET's model.
        stemmer: whether ROUGE stems English words.

    Raises:
        UserError: see `text_metrics`; or COMET or its model is not installed.
    """
    metrics = text_metrics([name for name in names if name != COMET], target_lang, stemmer=stemmer)
    if COMET in names:
        metrics.append(from_sacrebleu(COMET, comet_metric(comet_model, source)))
    return metrics


class TextScorer:
    """Scores a translation against its reference.

    Args:
        metrics: what to compute.
        confidence: whether to compute 95% bootstrap intervals, too.
    """

    def __init__(self, metrics: Sequence[Metric], confidence: bool) -> None:
        self._metrics, self._resampling = metrics, Resampling(confidence)

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[CorpusScore]:
        """Score detokenized translations against raw text, one reference per sentence.

        Raises:
            UserError: the two sides have different numbers of lines, or no lines.
        """
        check_pairs(hypotheses, references)
        systems = {"": hypotheses}
        return score_systems(systems, [references], self._metrics, self._resampling)[""]


def check_scored(args: argparse.Namespace) -> None:
    """Check that there is a reference if options ask for scores.

    Raises:
        UserError: there is none.
    """
    if args.input is None or args.reference is not None:
        return
    for name in ("results", "metrics", "confidence", "no_stemmer"):
        if vars(args)[name]:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: there is no score without --reference; add it")


def chosen_scorer(args: argparse.Namespace, target_lang: str) -> TextScorer:
    """Return what computes the scores that the options of `add_metrics` ask for.

    Raises:
        UserError: see `text_metrics`.
    """
    names = args.metrics or DEFAULT_METRICS
    return TextScorer(
        text_metrics(names, target_lang, stemmer=not args.no_stemmer), args.confidence
    )
