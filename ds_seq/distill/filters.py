"""Filters that decide which hypotheses of a teacher are good enough to learn from.

Post, 2018, "A Call for Clarity in Reporting BLEU Scores", https://arxiv.org/abs/1804.08771;
Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation"; Lin, 2004, "ROUGE: A
Package for Automatic Evaluation of Summaries".

Does not import torch, which the processes that compare text do not need. Shapes: H hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

from ds_seq.data.shards import TokenBlock
from ds_seq.names import FILTER_METRICS
from ds_seq.scores.rouge import build_rouge
from ds_seq.scores.scoring import build_sentence_bleu
from ds_seq.text.tokenizer import Tokenizer

Metric = Callable[[str, str], float]


@dataclass(frozen=True)
class Filters:
    """Conditions that a hypothesis must meet to become a label.

    Attributes:
        min_score: minimum `Hypothesis.score`.
        max_ratio: maximum ratio of token counts between hypothesis and source, in either direction.
        min_metric: minimum similarity to the reference, by name of the metric.
        best_metric: metric by which only the passing hypothesis closest to the reference is kept
            per sentence; on a tie, the one that the teacher prefers.
    """

    min_score: float | None = None
    max_ratio: float | None = None
    min_metric: Mapping[str, float] = field(default_factory=dict)
    best_metric: str | None = None

    @property
    def metrics(self) -> list[str]:
        """The metrics that the filters need, in the order of `FILTER_METRICS`."""
        return [
            name for name in FILTER_METRICS if name in self.min_metric or name == self.best_metric
        ]


class Similarity:
    """Similarity of a sentence to its reference, both detokenized.

    Every metric ranges from 0 to 100. BLEU uses the effective order, as single sentences require.
    ROUGE is the F-measure, on stemmed words in English. In other languages it uses BLEU's
    tokenization, because the rouge-score package only supports the letters a to z.

    Args:
        metrics: names of the metrics, from `FILTER_METRICS`.
        target_lang: language code of the target.

    Attributes:
        metrics: names of the metrics.

    Raises:
        UserError: a package that a metric needs is not installed.
    """

    def __init__(self, metrics: Sequence[str], target_lang: str) -> None:
        self.metrics = tuple(metrics)
        self._target_lang = target_lang
        self._score = [_metric(name, target_lang) for name in metrics]

    def __reduce__(self) -> tuple[type[Similarity], tuple[tuple[str, ...], str]]:
        # for other processes: the metrics' tokenizers cannot be pickled
        return Similarity, (self.metrics, self._target_lang)

    def __call__(self, hypothesis: str, reference: str) -> list[float]:
        """Return one value per metric."""
        return [metric(hypothesis, reference) for metric in self._score]


def _metric(name: str, target_lang: str) -> Metric:
    if name == "chrf":
        return _sentence_score(CHRF())
    bleu = build_sentence_bleu(target_lang)
    if name == "bleu":
        return _sentence_score(bleu)
    return build_rouge(name, target_lang, bleu.tokenizer)


def _sentence_score(scorer: BLEU | CHRF) -> Metric:
    def score(hypothesis: str, reference: str) -> float:
        return float(scorer.sentence_score(hypothesis, [reference]).score)

    return score


class Comparison(NamedTuple):
    """What a worker process needs to compare token ids as text."""

    tokenizer: Tokenizer
    similarity: Similarity


def compare(comparison: Comparison, pair: tuple[TokenBlock, TokenBlock]) -> NDArray[np.float64]:
    """Compare hypotheses with the same number of references: (H, number of metrics)."""
    decode = comparison.tokenizer.decode
    texts = [[decode(ids) for ids in _sentences(block)] for block in pair]
    values = [comparison.similarity(*both) for both in zip(*texts, strict=True)]
    return np.array(values, np.float64).reshape(len(values), len(comparison.similarity.metrics))


def _sentences(block: TokenBlock) -> list[list[int]]:
    """Return the sentences of a block as lists."""
    ends = np.cumsum(block.lengths)
    return [part.tolist() for part in np.split(block.tokens, ends[:-1])] if len(ends) else []
