"""Errors of single sentences, as sacreBLEU measures them on plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sacrebleu.metrics.base import Metric

from ds_seq.names import UtilityName
from ds_seq.scores.scoring import build_metric, build_sentence_bleu
from ds_seq.text.tokenizer import Tokenizer

Errors = Callable[[Sequence[Sequence[int]], Sequence[int]], list[float]]
"""(ids of candidates, ids of their reference) -> error of each candidate, from 0 to 1."""


def sentence_errors(name: UtilityName, target_lang: str, tokenizer: Tokenizer) -> Errors:
    """Return a function that measures candidates: 1 minus their sentence score.

    The score is that of plain text and not of subwords, so it is what a validation measures,
    whatever the vocabulary.

    Args:
        name: `bleu` or `chrf`.
        target_lang: language code of the text; determines BLEU's tokenization.
        tokenizer: turns ids into text.

    Raises:
        UserError: the tokenization of that language needs a package that is not installed.
    """
    metric: Metric = (
        build_sentence_bleu(target_lang) if name == "bleu" else build_metric(name, target_lang)
    )

    def errors(candidates: Sequence[Sequence[int]], reference: Sequence[int]) -> list[float]:
        texts, target = [tokenizer.decode(ids) for ids in candidates], tokenizer.decode(reference)
        by_text = {text: metric.sentence_score(text, [target]).score for text in set(texts)}
        return [1.0 - by_text[text] / 100.0 for text in texts]

    return errors
