"""Metrics that are means over sentences, as sacreBLEU metrics that support resampling and tests.

ROUGE: see `ds_seq.scores.rouge`. COMET: Rei et al., 2020, "COMET: A Neural Framework for MT
Evaluation", https://arxiv.org/abs/2009.09025. Both need optional packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sacrebleu.metrics.base import Metric, Score, Signature
from sacrebleu.metrics.bleu import BLEU

from ds_seq.errors import UserError
from ds_seq.scores.languages import is_english
from ds_seq.scores.rouge import ROUGE, build_rouge, sentence_lines
from ds_seq.scores.scoring import build_metric

SentenceScorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]
"""Maps hypotheses and references to one value per hypothesis."""


class SentenceMean(Metric):
    """The mean over sentences of the values of `scorer`, as a metric that sacreBLEU can resample.

    Args:
        label: display name of the metric.
        scorer: computes the value of each sentence.
        signature: how the metric is computed, by key.
    """

    def __init__(self, label: str, scorer: SentenceScorer, signature: Mapping[str, str]) -> None:
        super().__init__()
        self._label = label
        self._scorer = scorer
        self._signature_fields = signature

    def get_signature(self) -> Signature:
        """Return sacreBLEU's signature with the additional fields of this metric."""
        signature = super().get_signature()
        for key, value in self._signature_fields.items():
            signature.update(key, value)
        return signature

    def _extract_corpus_statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]] | None
    ) -> list[list[float]]:
        assert references is not None
        self.num_refs = len(references)
        return [[float(value), 1.0] for value in self._scorer(hypotheses, references)]

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score(self._label, float(stats[0]) / float(stats[1]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])

    # Abstract methods of the base class for n-gram metrics; they are never called here.
    def _preprocess_segment(self, sent: str) -> str:
        raise NotImplementedError

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        raise NotImplementedError

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> list[Any]:
        raise NotImplementedError


def rouge_metric(name: str, target_lang: str, stemmer: bool = True) -> Metric:
    """Build a ROUGE variant; of several references, the one with the highest value counts.

    Args:
        name: one of `ROUGE`.
        target_lang: language code of the text.
        stemmer: see `build_rouge`.

    Raises:
        UserError: the language is empty, or a required package is not installed.
    """
    if not target_lang:
        raise UserError(
            f"{name}: give the language of the text with --target-lang; English (en) is stemmed"
        )
    bleu = build_metric("bleu", target_lang)
    assert isinstance(bleu, BLEU)
    english = is_english(target_lang)
    words = "rouge-score" if english else f"{bleu.tokenizer_signature}-lower"
    rouge = build_rouge(name, target_lang, bleu.tokenizer, stemmer)
    signature = {"tok": words, "stem": "porter" if english and stemmer else "no"}
    if name == "rougeLsum":
        signature["sentences"] = "punctuation"
    signature["version"] = f"rouge-score-{version('rouge-score')}"
    return SentenceMean(ROUGE[name], partial(_closest, rouge), signature)


def _closest(
    rouge: Callable[[str, str], float],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
) -> list[float]:
    hypotheses = [sentence_lines(text) for text in hypotheses]
    rows = [[sentence_lines(text) for text in row] for row in zip(*references, strict=True)]
    return [
        max(rouge(hypothesis, reference) for reference in row)
        for hypothesis, row in zip(hypotheses, rows, strict=True)
    ]


def comet_metric(model: str, sources: Sequence[str]) -> Metric:
    """Build COMET, scaled by 100, from the package unbabel-comet.

    Args:
        model: name of a model of the package, or path of a checkpoint.
        sources: source sentences of the translations.

    Raises:
        UserError: the package is not installed, or the model cannot be loaded.
    """
    try:
        comet, release = import_module("comet"), version("unbabel-comet")
    except ImportError:  # also raised by `version` if `comet` belongs to another package
        raise UserError(
            "comet: needs the package unbabel-comet; install it with `pip install unbabel-comet`"
        ) from None
    try:
        path = model if Path(model).exists() else comet.download_model(model)
        network = comet.load_from_checkpoint(path)
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"comet: cannot load the model {model!r}: {error}") from error

    def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        rows = zip(sources, hypotheses, references[0], strict=True)
        texts = [{"src": source, "mt": text, "ref": reference} for source, text, reference in rows]
        gpus = int(import_module("torch").cuda.is_available())
        return [100.0 * value for value in network.predict(texts, batch_size=16, gpus=gpus).scores]

    signature = {"model": Path(model).name, "version": f"unbabel-comet-{release}"}
    return SentenceMean("COMET", score, signature)
