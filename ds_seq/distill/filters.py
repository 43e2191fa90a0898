"""Which hypotheses of a teacher are good enough to learn from.

Post, 2018, "A Call for Clarity in Reporting BLEU Scores", https://arxiv.org/abs/1804.08771;
Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation"; Lin, 2004, "ROUGE: A
Package for Automatic Evaluation of Summaries".

Imports no torch, which the processes that compare text need not load. Shapes: H hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

from ds_seq.data.shards import TokenBlock
from ds_seq.errors import UserError
from ds_seq.scores.rouge import build_rouge
from ds_seq.text.tokenizer import Tokenizer

ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = ("bleu", "chrf", *ROUGE)

Metric = Callable[[str, str], float]


@dataclass(frozen=True)
class Filters:
    """What a hypothesis must be to become a label.

    Attributes:
        min_score: its `Hypothesis.score` is at least this.
        max_ratio: neither it nor its source has more than so many times the other's tokens.
        min_metric: its similarity to the reference, by name of the metric, is at least this.
        best_metric: of the hypotheses of a sentence that pass, only the one that is closest to the
            reference by this metric; of equal ones the one that the teacher prefers.
    """

    min_score: float | None = None
    max_ratio: float | None = None
    min_metric: Mapping[str, float] = field(default_factory=dict)
    best_metric: str | None = None

    @property
    def metrics(self) -> list[str]:
        """The metrics that must be known, in the order of `METRICS`."""
        return [name for name in METRICS if name in self.min_metric or name == self.best_metric]


class Similarity:
    """How close a sentence is to its reference, both detokenized.

    Every metric goes from 0 to 100. BLEU has effective order, as it must for single sentences;
    ROUGE is the F-measure, of stemmed words in English. In other languages its words are those
    of BLEU: the rouge-score package knows no letters but a to z.

    Args:
        metrics: names, some of `METRICS`.
        target_lang: language code.

    Attributes:
        metrics: as given.

    Raises:
        UserError: a package that a metric needs is not installed.
    """

    def __init__(self, metrics: Sequence[str], target_lang: str) -> None:
        self.metrics = tuple(metrics)
        self._target_lang = target_lang
        self._score = [_metric(name, target_lang) for name in metrics]

    def __reduce__(self) -> tuple[type[Similarity], tuple[tuple[str, ...], str]]:
        # to travel to other processes: tokenizers cannot
        return Similarity, (self.metrics, self._target_lang)

    def __call__(self, hypothesis: str, reference: str) -> list[float]:
        """One value for each metric."""
        return [metric(hypothesis, reference) for metric in self._score]


def _metric(name: str, target_lang: str) -> Metric:
    if name == "chrf":
        return _sentence_score(CHRF())
    try:
        # force: text that ends in " ." is scored as it is, without a warning for each sentence
        bleu = BLEU(trg_lang=target_lang, effective_order=True, force=True)
    except (ImportError, RuntimeError) as error:  # MeCab is an extra of sacreBLEU
        why = " ".join(str(error).split())  # sacreBLEU's advice has many lines
        raise UserError(f"{name}: cannot compare text in {target_lang!r}: {why}") from error
    if name == "bleu":
        return _sentence_score(bleu)
    return build_rouge(name, target_lang, bleu.tokenizer)


def _sentence_score(scorer: BLEU | CHRF) -> Metric:
    def score(hypothesis: str, reference: str) -> float:
        return float(scorer.sentence_score(hypothesis, [reference]).score)

    return score


class Judge(NamedTuple):
    """What a process needs to compare ids."""

    tokenizer: Tokenizer
    similarity: Similarity


def compare(judge: Judge, pair: tuple[TokenBlock, TokenBlock]) -> NDArray[np.float64]:
    """Metrics of hypotheses and as many references: (H, number of metrics)."""
    texts = [[judge.tokenizer.decode(ids) for ids in _sentences(block)] for block in pair]
    values = [judge.similarity(*both) for both in zip(*texts, strict=True)]
    return np.array(values, np.float64).reshape(len(values), len(judge.similarity.metrics))


def _sentences(block: TokenBlock) -> list[list[int]]:
    """The sentences of a block, as lists."""
    ends = np.cumsum(block.lengths)
    return [part.tolist() for part in np.split(block.tokens, ends[:-1])] if len(ends) else []
