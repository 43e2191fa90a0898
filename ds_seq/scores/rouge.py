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


def sentence_lines(text: str) -> str:
    """Put each sentence of a summary on its own line, as ROUGE-Lsum requires.

    A sentence ends after `.`, `!` or `?`, perhaps with a closing quote or bracket, if white space
    follows; after the full stops of Chinese and Japanese; and at `<n>`, the line break of Pegasus.
    Abbreviations ("Mr. Smith") are not known, so they end a sentence, too, in text and reference
    alike.
    """
    return _SENTENCE_END.sub("\n", text.strip())


def build_rouge(
    name: str, target_lang: str, split: Callable[[str], str], stemmer: bool = True
) -> Callable[[str, str], float]:
    """Return a function of hypothesis and reference: the F-measure of a ROUGE variant, 0 to 100.

    Args:
        name: one of `ROUGE`.
        target_lang: language code. English is tokenized by rouge-score, whose tokenizer supports
            only the letters a to z; other languages are tokenized by `split` and never stemmed.
        split: tokenizes a text into words separated by spaces.
        stemmer: whether English words are compared without their endings (Porter's stemmer), as in
            published scores.

    Raises:
        UserError: the package rouge-score is not installed.
    """
    try:
        module = import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise UserError(
            f"{name}: needs the package rouge-score; install it with `pip install rouge-score`"
        ) from None
    if is_english(target_lang):
        scorer = module.RougeScorer([name], use_stemmer=stemmer)
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
