"""ROUGE: the overlap between a text and a reference summary.

Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". Scores are computed by the
optional package rouge-score. This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

from ds_seq.errors import UserError
from ds_seq.scores.languages import is_english

ROUGE = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
}
"""Variants by name, with their usual spelling in papers."""

_SENTENCE_END = re.compile(
    r"\s*<n>\s*"  # how some models write the end of a line inside a summary
    r"|(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+"
    r"|(?<=[。！？])"
)


def stems(target_lang: str) -> bool:
    """Return whether words are stemmed, as is usual in English."""
    return is_english(target_lang)


def sentence_lines(text: str) -> str:
    """Put each sentence of a summary on its own line, as ROUGE-Lsum requires."""
    return _SENTENCE_END.sub("\n", text.strip())


def build_rouge(
    name: str, target_lang: str, split: Callable[[str], str]
) -> Callable[[str, str], float]:
    """Return a function of hypothesis and reference: the F-measure of a ROUGE variant, 0 to 100.

    Args:
        name: one of `ROUGE`.
        target_lang: language code. English is tokenized and stemmed by rouge-score; its tokenizer
            supports only the letters a to z, so other languages are tokenized by `split`.
        split: tokenizes a text into words separated by spaces.

    Raises:
        UserError: the package rouge-score is not installed.
    """
    try:
        module = import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise UserError(
            f"{name}: needs the package rouge-score; install it with `pip install rouge-score`"
        ) from None
    if stems(target_lang):
        scorer = module.RougeScorer([name], use_stemmer=True)
    else:
        scorer = module.RougeScorer([name], tokenizer=_Words(split))

    def score(hypothesis: str, reference: str) -> float:
        return 100.0 * float(scorer.score(reference, hypothesis)[name].fmeasure)

    return score


class _Words:
    """Tokenizer for rouge-score: lowercased words of `split`."""

    def __init__(self, split: Callable[[str], str]) -> None:
        self._split = split

    def tokenize(self, text: str) -> list[str]:
        return self._split(text.lower()).split()
