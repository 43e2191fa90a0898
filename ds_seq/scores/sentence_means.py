"""Metrics that are the mean over sentences, in the form that sacreBLEU can resample and test.

ROUGE, see `rouge`; COMET: Rei et al., 2020, "COMET: A Neural Framework for MT Evaluation",
https://arxiv.org/abs/2009.09025. Both packages are optional.
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
from ds_seq.scores.rouge import ROUGE, build_rouge, sentence_lines, stems
from ds_seq.scores.scoring import build_metric

SentenceScorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]
"""(hypotheses, references) -> one value for each hypothesis."""


class SentenceMean(Metric):
    """The mean over sentences of what ``judge`` says, with sacreBLEU's resampling around it.

    Args:
        label: the name for readers.
        judge: values of the sentences.
        signature: how it is computed, by key.
    """

    def __init__(self, label: str, judge: SentenceScorer, signature: Mapping[str, str]) -> None:
        super().__init__()
        self._label = label
        self._judge = judge
        self._own = signature

    def get_signature(self) -> Signature:
        """That of sacreBLEU, with our keys."""
        signature = super().get_signature()
        for key, value in self._own.items():
            signature.update(key, value)
        return signature

    def _extract_corpus_statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]] | None
    ) -> list[list[float]]:
        assert references is not None
        self.num_refs = len(references)
        return [[float(value), 1.0] for value in self._judge(hypotheses, references)]

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score(self._label, float(stats[0]) / float(stats[1]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])

    # The base class wants these three for metrics of n-grams; nothing here calls them.
    def _preprocess_segment(self, sent: str) -> str:
        raise NotImplementedError

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        raise NotImplementedError

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> list[Any]:
        raise NotImplementedError


def rouge_metric(name: str, target_lang: str) -> Metric:
    """One kind of ROUGE; of several references the closest one counts.

    Args:
        name: one of `ROUGE`.
        target_lang: language code.

    Raises:
        UserError: the language is not given, or a package is not installed.
    """
    if not target_lang:
        raise UserError(
            f"{name}: give the language of the text with --target-lang; English is stemmed (en)"
        )
    bleu = build_metric("bleu", target_lang)
    assert isinstance(bleu, BLEU)
    words = "rouge-score" if stems(target_lang) else f"{bleu.tokenizer_signature}-lower"
    rouge = build_rouge(name, target_lang, bleu.tokenizer)
    signature = {"tok": words, "stem": "porter" if stems(target_lang) else "no"}
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
    """COMET times 100, as the package unbabel-comet has it.

    Args:
        model: a name that the package knows, or the path of a checkpoint.
        sources: what was translated.

    Raises:
        UserError: the package is not installed, or there is no such model.
    """
    try:
        comet, release = import_module("comet"), version("unbabel-comet")
    except ImportError:  # also that of `version`, where `comet` is some other package
        raise UserError(
            "comet: needs the package unbabel-comet; install it with `pip install unbabel-comet`"
        ) from None
    try:
        path = model if Path(model).exists() else comet.download_model(model)
        network = comet.load_from_checkpoint(path)
    except (KeyError, OSError, ValueError) as error:
        raise UserError(f"comet: cannot load the model {model!r}: {error}") from error

    def judge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        rows = zip(sources, hypotheses, references[0], strict=True)
        texts = [{"src": source, "mt": text, "ref": reference} for source, text, reference in rows]
        gpus = int(import_module("torch").cuda.is_available())
        return [100.0 * value for value in network.predict(texts, batch_size=16, gpus=gpus).scores]

    signature = {"model": Path(model).name, "version": f"unbabel-comet-{release}"}
    return SentenceMean("COMET", judge, signature)
