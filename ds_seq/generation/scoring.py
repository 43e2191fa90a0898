"""Corpus scores of detokenised translations, with the signatures that make them comparable.

Post, 2018, "A Call for Clarity in Reporting BLEU Scores", https://arxiv.org/abs/1804.08771;
Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sacrebleu.metrics import BLEU, CHRF

from ds_seq.errors import UserError
from ds_seq.generation.text import read_parallel


@dataclass(frozen=True)
class Score:
    """One score of a whole text.

    Attributes:
        name: `bleu` or `chrf`.
        value: from 0 to 100.
        signature: how it was computed, as sacreBLEU writes it.
        text: name, signature, value and details in one line, as sacreBLEU writes them.
    """

    name: str
    value: float
    signature: str
    text: str

    def __str__(self) -> str:
        return self.text


class _CorpusScore(Protocol):
    score: float

    def format(self, width: int, score_only: bool, signature: str) -> str: ...


class _Metric(Protocol):
    def corpus_score(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]] | None
    ) -> _CorpusScore: ...

    def get_signature(self) -> object: ...


def _bleu(target_lang: str) -> _Metric:
    # force: text that ends in " ." is scored as it is; the warning would come at every validation
    metric: _Metric = BLEU(trg_lang=target_lang, force=True)
    return metric


def _chrf(target_lang: str) -> _Metric:
    metric: _Metric = CHRF()
    return metric


_METRICS: dict[str, Callable[[str], _Metric]] = {"bleu": _bleu, "chrf": _chrf}


class Scorer:
    """BLEU and chrF of a text.

    Args:
        target_lang: language code; BLEU splits words of Chinese, Japanese and Korean in ways of
            their own.

    Raises:
        UserError: the words of that language need a package that is not installed.
    """

    def __init__(self, target_lang: str = "") -> None:
        try:
            self._metrics = {name: make(target_lang) for name, make in _METRICS.items()}
        except (ImportError, RuntimeError) as error:  # MeCab is an extra of sacreBLEU
            raise UserError(f"cannot score text in {target_lang!r}: {error}") from error

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
        """Score detokenised translations against raw text, one reference each.

        Raises:
            UserError: the two sides have different numbers of lines, or none.
        """
        if len(hypotheses) != len(references):
            raise UserError(
                f"there are {len(hypotheses):,} translations but {len(references):,} reference "
                "lines; give the reference of the same text"
            )
        if not references:
            raise UserError("there is no text to score: translations and reference are empty")
        scores = []
        for name, metric in self._metrics.items():
            result = metric.corpus_score(hypotheses, [references])
            signature = str(metric.get_signature())
            # the form that sacreBLEU's own command prints with `--format text`
            text = result.format(width=2, score_only=False, signature=signature)
            scores.append(Score(name, result.score, signature, text))
        return scores


def main(argv: Sequence[str]) -> int:
    """The command ``ds-seq score``."""
    parser = argparse.ArgumentParser(
        prog="ds-seq score", description="BLEU and chrF of a translation, as sacreBLEU has them."
    )
    parser.add_argument(
        "hypothesis", help="detokenised translation, one sentence a line; - = stdin"
    )
    parser.add_argument("reference", help="raw reference text, line by line the same")
    parser.add_argument(
        "--target-lang", default="", help="language code; matters for zh, ja and ko (default: none)"
    )
    args = parser.parse_args(argv)
    hypotheses, references = read_parallel(args.hypothesis, args.reference)
    for result in Scorer(args.target_lang)(hypotheses, references):
        print(result)
    return 0
