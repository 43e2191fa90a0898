"""How sure a score is, and whether two systems differ: sacreBLEU's resampling and paired tests.

Koehn, 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Riezler and
Maxwell, 2005, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sacrebleu.significance import PairedTest, Result

from ds_seq.errors import UserError
from ds_seq.scores.metric import Metric, no_resamples
from ds_seq.scores.scoring import CorpusScore, label

PairedName = Literal["bootstrap", "randomization"]

SAMPLES: dict[PairedName, int] = {"bootstrap": 1000, "randomization": 10_000}
"""The paired tests, and how many samples each draws unless told; those of sacreBLEU."""

DEFAULT_SEED = 12345

_CODES = {"bootstrap": "bs", "randomization": "ar"}
_SEED_VARIABLE = "SACREBLEU_SEED"


@dataclass(frozen=True)
class Resampling:
    """What to find out beside the scores.

    Attributes:
        confidence: a confidence interval for each score.
        paired: test each system against the first one. The bootstrap brings confidence intervals
            along.
        samples: how many; None is 1000 bootstrap resamples and 10000 randomizations.
        seed: at least 1: sacreBLEU takes 0 for none at all in its paired tests.
    """

    confidence: bool = False
    paired: PairedName | None = None
    samples: int | None = None
    seed: int = DEFAULT_SEED


def score_systems(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[Metric],
    resampling: Resampling,
) -> dict[str, list[CorpusScore]]:
    """Score texts against the same references.

    Args:
        systems: by name, one sentence each; for a paired test two or more, the baseline first.
        references: for each reference, as many sentences.
        metrics: what to compute.
        resampling: what to find out beside the scores.

    Returns:
        For each system the scores in the order of ``metrics``. The numbers are sacreBLEU's, but
        for one: where there is no difference at all, its p-value is 1.

    Raises:
        UserError: resamples are wanted of a metric that has none.
    """
    with _seeded(resampling.seed):
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
    ((own, signature),) = signatures.items()
    rows = [row for row in results[own] if isinstance(row, Result)]
    for row in rows[1:]:
        if row.score == rows[0].score:
            # sacreBLEU counts larger differences only: it would call a copy of the baseline
            # significantly different, because it differs by nothing in every sample
            row.p_value = 1.0
    return [_score(metric.name, own, str(signature), row) for row in rows]


def _score(name: str, metrics_own: str, signature: str, row: Result) -> CorpusScore:
    mean, ci, p_value = (
        None if value is None else float(value) for value in (row.mean, row.ci, row.p_value)
    )
    shown = label(name, metrics_own)
    text = f"{shown}|{signature} = {row.score:.2f}"
    return CorpusScore(name, float(row.score), signature, text, shown, mean, ci, p_value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """sacreBLEU takes its seed from the environment and from nowhere else."""
    before = os.environ.get(_SEED_VARIABLE)
    os.environ[_SEED_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SEED_VARIABLE]
        else:
            os.environ[_SEED_VARIABLE] = before
