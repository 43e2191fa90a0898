"""Minimum Bayes risk decoding: of many samples, the one that most resembles the others.

Eikema and Aziz, 2020, "Is MAP Decoding All You Need? The Inadequacy of the Mode in Neural Machine
Translation", https://arxiv.org/abs/2005.10283. Utilities are sacreBLEU's sentence scores, but
n-grams are counted once for each sample and compared as tables: sacreBLEU would count both sides
of each of the U ** 2 pairs.

Shapes: U different texts, G different n-grams of any of them, O orders of n-grams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams, extract_all_word_ngrams

from ds_seq.generation.translate import LineResult
from ds_seq.scores.scoring import build_metric
from ds_seq.search.hypotheses import Hypothesis

UtilityName = Literal["chrf", "bleu"]
UTILITIES: tuple[str, ...] = get_args(UtilityName)

Utility = Callable[[Sequence[str]], NDArray[np.float64]]
"""Texts (U,) -> (U, U) from 0 to 100: row = hypothesis, column = reference."""


@dataclass(frozen=True)
class MinimumRisk:
    """Chooses among samples by their expected utility.

    The cost grows with the square of the number of different samples of a line.

    Attributes:
        utility: how well one text would do if another were the reference.
        text: plain text of a hypothesis.
        num_best: how many of a line are kept.
    """

    utility: Utility
    text: Callable[[Hypothesis], str]
    num_best: int = 1

    def __call__(self, batch: list[LineResult]) -> list[LineResult]:
        """The same, with the best of the samples alone; there may be fewer than `num_best`."""
        return [
            # a line without text has one hypothesis, and nothing to choose from
            one._replace(hypotheses=self.rank(one.hypotheses)[: self.num_best])
            if len(one.hypotheses) > 1
            else one
            for one in batch
        ]

    def rank(self, samples: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Order samples; those of the same text become one.

        Args:
            samples: at least two, drawn independently.

        Returns:
            A hypothesis for each different text, with its `utility`: the mean of what it has
            against all other samples, its own copies among them. The best first; of equal ones that
            which the model gives the higher score, and then the one drawn first.
        """
        texts = [self.text(sample) for sample in samples]
        counts = Counter(texts)  # in the order of the first draws
        best: dict[str, Hypothesis] = {}
        for text, sample in zip(texts, samples, strict=True):
            if text not in best or sample.score > best[text].score:
                best[text] = sample
        table = self.utility(list(counts))  # (U, U)
        weights = np.array(list(counts.values()), np.float64)
        # a sample is no witness for itself
        expected = (table @ weights - table.diagonal()) / (len(samples) - 1)
        ranked = [
            replace(best[text], utility=float(value))
            for text, value in zip(counts, expected, strict=True)
        ]
        return sorted(ranked, key=lambda one: (-round(one.utility or 0.0, 9), -one.score))


def build_utility(name: str, target_lang: str) -> Utility:
    """The utility of that name.

    Args:
        name: one of `UTILITIES`.
        target_lang: language code; decides how BLEU splits words.

    Raises:
        UserError: the words of that language need a package that is not installed.
    """
    if name == "chrf":
        return chrf_table
    metric = build_metric("bleu", target_lang)
    assert isinstance(metric, BLEU)
    tokenizer = metric.tokenizer

    def table(texts: Sequence[str]) -> NDArray[np.float64]:
        return bleu_table([tokenizer(text.rstrip()) for text in texts])

    return table


def chrf_table(texts: Sequence[str]) -> NDArray[np.float64]:
    """chrF2 of every text against every other, as sacreBLEU scores sentences, (U, U)."""
    grams = [extract_all_char_ngrams(text, CHRF.CHAR_ORDER) for text in texts]
    precision = np.zeros((len(texts), len(texts)))
    recall, orders = np.zeros_like(precision), np.zeros_like(precision)
    for order in range(CHRF.CHAR_ORDER):
        matches, totals = _overlap([counts[order] for counts in grams])
        hypothesis, reference = totals[:, None], totals[None, :]
        # a text that is too short for this order has none of it, and it does not count
        both = (hypothesis > 0) & (reference > 0)
        precision += np.where(both, matches / np.maximum(hypothesis, 1), 0.0)
        recall += np.where(both, matches / np.maximum(reference, 1), 0.0)
        orders += both
    precision, recall = (x / np.maximum(orders, 1) for x in (precision, recall))
    factor = CHRF.BETA**2
    score = (1 + factor) * precision * recall
    found: NDArray[np.float64] = 100 * score / np.maximum(factor * precision + recall, 1e-300)
    return found


def bleu_table(texts: Sequence[str]) -> NDArray[np.float64]:
    """BLEU of every text against every other, as sacreBLEU scores sentences, (U, U).

    Args:
        texts: words with spaces between them.
    """
    counted = [extract_all_word_ngrams(text, 1, 4) for text in texts]
    matches, totals = [], []
    for order in range(1, 5):
        ngrams = [
            Counter({gram: count for gram, count in counts.items() if len(gram) == order})
            for counts, _ in counted
        ]
        overlap, total = _overlap(ngrams)
        matches.append(overlap)
        totals.append(total)
    correct, total = (
        np.stack(matches, 2).tolist(),
        np.stack(totals, 1).tolist(),
    )  # (U, U, O), (U, O)
    lengths = [length for _, length in counted]
    rows = [
        [
            BLEU.compute_bleu(
                correct[i][j], [*total[i]], lengths[i], lengths[j], "exp", effective_order=True
            ).score
            for j in range(len(texts))
        ]
        for i in range(len(texts))
    ]
    return np.array(rows, np.float64).reshape(len(texts), len(texts))


def _overlap(ngrams: Sequence[Counter[str]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """N-grams that two texts have in common (U, U), and all of each text (U,)."""
    columns: dict[str, int] = {}
    for counts in ngrams:
        for gram in counts:
            columns.setdefault(gram, len(columns))
    table = np.zeros((len(ngrams), len(columns)), np.int64)  # (U, G)
    for row, counts in zip(table, ngrams, strict=True):
        row[[columns[gram] for gram in counts]] = list(counts.values())
    common = np.stack([np.minimum(row, table).sum(1) for row in table])
    return common, table.sum(1)
