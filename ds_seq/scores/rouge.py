"""ROUGE: how much of a reference summary a text has in common with it.

Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". The arithmetic is that of the
package rouge-score, which is an extra. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

from ds_seq.errors import UserError

ROUGE = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
}
"""The kinds, and how papers write them."""

_SENTENCE_END = re.compile(
    r"\s*<n>\s*"  # how some models write the end of a line inside a summary
    r"|(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))\s+"
    r"|(?<=[。！？])"
)


def stems(target_lang: str) -> bool:
    """Whether words are reduced to their stems: in English, as is usual."""
    return target_lang == "en"


def sentence_lines(text: str) -> str:
    """A summary with a line for each of its sentences, which ROUGE-Lsum compares one by one."""
    return _SENTENCE_END.sub("\n", text.strip())


def build_rouge(
    name: str, target_lang: str, split: Callable[[str], str]
) -> Callable[[str, str], float]:
    """A function of (hypothesis, reference): the F-measure of one kind of ROUGE, from 0 to 100.

    Args:
        name: one of `ROUGE`.
        target_lang: language code. English words are those of the package, stemmed; it knows no
            letters but a to z, so for other languages ``split`` finds the words.
        split: text to words with spaces in between.

    Raises:
        UserError: the package is not installed.
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
    """Words as ``split`` finds them, in small letters."""

    def __init__(self, split: Callable[[str], str]) -> None:
        self._split = split

    def tokenize(self, text: str) -> list[str]:
        return self._split(text.lower()).split()
