"""Confidence intervals of scores and paired significance tests, by sacreBLEU's resampling.

Koehn, 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Riezler and
Maxwell, 2005, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sacrebleu.significance import PairedTest, Result

from ds_seq.environment import variable
from ds_seq.errors import UserError
from ds_seq.names import RESAMPLING_SEED, PairedTestName
from ds_seq.scores.metric import Metric, no_resamples
from ds_seq.scores.scoring import CorpusScore, label

SAMPLES: dict[PairedTestName, int] = {"bootstrap": 1000, "randomization": 10_000}
"""Paired tests and their default number of samples, as in sacreBLEU."""

_CODES = {"bootstrap": "bs", "randomization": "ar"}
_SEED_VARIABLE = "SACREBLEU_SEED"


@dataclass(frozen=True)
class Resampling:
    """Statistics to compute in addition to the scores.

    Attributes:
        confidence: whether to compute a confidence interval for each score.
        paired: test that compares each system with the first one, or None. The bootstrap test also
            gives confidence intervals.
        samples: number of samples; None for 1000 bootstrap resamples or 10000 randomizations.
        seed: seed of the samples, at least 1, because sacreBLEU's paired tests treat 0 as no seed.
    """

    confidence: bool = False
    paired: PairedTestName | None = None
    samples: int | None = None
    seed: int = RESAMPLING_SEED


def score_systems(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[Metric],
    resampling: Resampling,
) -> dict[str, list[CorpusScore]]:
    """Score texts against the same references.

    Args:
        systems: sentences of each system, by name; for a paired test at least two systems, the
            baseline first.
        references: for each reference, one sentence per sentence of a system.
        metrics: metrics to compute.
        resampling: statistics to compute in addition to the scores.

    Returns:
        The scores of each system in the order of `metrics`. All values are sacreBLEU's, except that
        a system with the same score as the baseline has p-value 1.

    Raises:
        UserError: a metric does not support the requested resampling.
    """
    # sacreBLEU reads its seed from the environment only
    with variable(_SEED_VARIABLE, str(resampling.seed)):
        columns = [
            _plain(metric, systems, references, resampling)
            if resampling.paired is None
            else _paired(metric, systems, references, resampling)
            for metric in metrics
        ]
    return dict(zip(systems, map(list, zip(*columns, strict=True)), strict=True))


def _plain(
    metric: Metric,
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    resampling: Resampling,
) -> list[CorpusScore]:
    resamples = (resampling.samples or SAMPLES["bootstrap"]) if resampling.confidence else None
    return [metric.score(hypotheses, references, resamples) for hypotheses in systems.values()]


def _paired(
    metric: Metric,
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    resampling: Resampling,
) -> list[CorpusScore]:
    assert resampling.paired is not None and len(systems) > 1
    if metric.corpus is None:
        raise UserError(no_resamples(metric.name))
    # One metric at a time: every test starts from the seed, so this is the same as all at once.
    test = PairedTest(
        list(systems.items()),
        {metric.name: metric.corpus},
        references,
        test_type=_CODES[resampling.paired],
        n_samples=resampling.samples or SAMPLES[resampling.paired],
        n_ar_confidence=(resampling.samples or SAMPLES["bootstrap"])
        if resampling.confidence and resampling.paired == "randomization"
        else -1,
    )
    signatures, results = test()
    ((metric_label, signature),) = signatures.items()
    rows = [row for row in results[metric_label] if isinstance(row, Result)]
    for row in rows[1:]:
        if row.score == rows[0].score:
            # sacreBLEU counts only larger differences, so it would report a copy of the baseline as
            # significantly different
            row.p_value = 1.0
    return [_score(metric.name, metric_label, str(signature), row) for row in rows]


def _score(name: str, metrics_own: str, signature: str, row: Result) -> CorpusScore:
    mean, ci, p_value = (
        None if value is None else float(value) for value in (row.mean, row.ci, row.p_value)
    )
    shown = label(name, metrics_own)
    text = f"{shown}|{signature} = {row.score:.2f}"
    return CorpusScore(name, float(row.score), signature, text, shown, mean, ci, p_value)
