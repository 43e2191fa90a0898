"""Minimum Bayes risk decoding: the sample that is most similar to all other samples.

Eikema and Aziz, 2020, "Is MAP Decoding All You Need? The Inadequacy of the Mode in Neural Machine
Translation", https://arxiv.org/abs/2005.10283. Utilities are sacreBLEU's sentence scores, but
n-grams are counted once per sample and compared as tables; sacreBLEU would count both sides of each
of the U ** 2 pairs.

Shapes: U distinct texts, G distinct n-grams of all texts, O orders of n-grams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams, extract_all_word_ngrams

from ds_seq.generation.translate import LineResult
from ds_seq.scores.scoring import build_metric
from ds_seq.search.hypotheses import Hypothesis

Utility = Callable[[Sequence[str]], NDArray[np.float64]]
"""Maps texts (U,) to utilities (U, U) from 0 to 100; rows are hypotheses, columns references."""


@dataclass(frozen=True)
class MinimumRisk:
    """Selects samples by their expected utility.

    The cost is quadratic in the number of distinct samples of a line.

    Attributes:
        utility: quality of each text with each other text as the reference.
        text: returns the plain text of a hypothesis.
        num_best: number of samples to keep per line.
    """

    utility: Utility
    text: Callable[[Hypothesis], str]
    num_best: int = 1

    def __call__(self, batch: list[LineResult]) -> list[LineResult]:
        """Return the results of a batch with only the best samples, at most `num_best` per line."""
        return [
            # a line without text has a single hypothesis
            result._replace(hypotheses=self.rank(result.hypotheses)[: self.num_best])
            if len(result.hypotheses) > 1
            else result
            for result in batch
        ]

    def rank(self, samples: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Rank samples by expected utility; samples with the same text become one.

        Args:
            samples: at least two samples, drawn independently.

        Returns:
            A hypothesis for each distinct text, the best first. Its `utility` is the mean utility
            against all other samples, including its own copies. Ties are broken by the score of
            the model, then by the order of the draws.
        """
        texts = [self.text(sample) for sample in samples]
        counts = Counter(texts)  # in the order of the first draws
        best: dict[str, Hypothesis] = {}
        for text, sample in zip(texts, samples, strict=True):
            if text not in best or sample.score > best[text].score:
                best[text] = sample
        table = self.utility(list(counts))  # (U, U)
        weights = np.array(list(counts.values()), np.float64)
        # a sample is not compared with itself
        expected = (table @ weights - table.diagonal()) / (len(samples) - 1)
        ranked = [
            replace(best[text], utility=float(value))
            for text, value in zip(counts, expected, strict=True)
        ]
        return sorted(ranked, key=lambda h: (-round(h.utility or 0.0, 9), -h.score))


def build_utility(name: str, target_lang: str) -> Utility:
    """Return the utility `name`.

    Args:
        name: one of `UTILITIES`.
        target_lang: language code of the text; determines BLEU's tokenization.

    Raises:
        UserError: the tokenization of that language needs a package that is not installed.
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
    """Return the sentence chrF2 of every text against every other, (U, U), as in sacreBLEU."""
    grams = [extract_all_char_ngrams(text, CHRF.CHAR_ORDER) for text in texts]
    precision = np.zeros((len(texts), len(texts)))
    recall, orders = np.zeros_like(precision), np.zeros_like(precision)
    for order in range(CHRF.CHAR_ORDER):
        matches, totals = _overlap([counts[order] for counts in grams])
        hypothesis, reference = totals[:, None], totals[None, :]
        # an order counts only if both texts are long enough to have n-grams of it
        both = (hypothesis > 0) & (reference > 0)
        precision += np.where(both, matches / np.maximum(hypothesis, 1), 0.0)
        recall += np.where(both, matches / np.maximum(reference, 1), 0.0)
        orders += both
    precision, recall = (x / np.maximum(orders, 1) for x in (precision, recall))
    factor = CHRF.BETA**2
    score = (1 + factor) * precision * recall
    chrf: NDArray[np.float64] = 100 * score / np.maximum(factor * precision + recall, 1e-300)
    return chrf


def bleu_table(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the sentence BLEU of every text against every other, (U, U), as in sacreBLEU.

    Args:
        texts: tokenized texts, with spaces between the words.
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
    """Return the number of n-grams shared by each two texts (U, U) and of each text (U,)."""
    columns: dict[str, int] = {}
    for counts in ngrams:
        for gram in counts:
            columns.setdefault(gram, len(columns))
    table = np.zeros((len(ngrams), len(columns)), np.int64)  # (U, G)
    for row, counts in zip(table, ngrams, strict=True):
        row[[columns[gram] for gram in counts]] = list(counts.values())
    common = np.stack([np.minimum(row, table).sum(1) for row in table])
    return common, table.sum(1)
