"""Translation from one language to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.activity import phase
from ds_seq.data.batch import Batch, ParallelDataset, Seq2SeqInputs
from ds_seq.data.corpora import CorporaDataset, Part
from ds_seq.data.open import SHARDS, SourceChoice, open_source
from ds_seq.data.origin import Expected
from ds_seq.data.source import Dataset, Source
from ds_seq.distributed import broadcast_object
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits, Share, translate
from ds_seq.models.protocol import TranslationModel
from ds_seq.scores.metric import TEXT, Metric, find_metric, measure
from ds_seq.search.beam_search import BeamSearch
from ds_seq.tasks.held_out import HeldOut, Scored, figures_by_text
from ds_seq.text.lines import PairPath, read_pairs
from ds_seq.text.samples import format_samples
from ds_seq.text.tokenizer import Tokenizers

Parts = Callable[[str, Source], Sequence[Part]]
"""(split, its examples) -> its corpora; empty if its examples are plain pairs."""


Cut = Callable[[Source], Source]
"""Examples -> the same with shorter sides."""


def no_parts(split: str, source: Source) -> Sequence[Part]:
    """Return that a split has no corpora of its own."""
    return ()


class RawText(NamedTuple):
    """Raw parallel text: line n of one side translates line n of the other."""

    source: list[str]
    target: list[str]


def read_files(
    split: str, files: Sequence[PairPath], max_sentences: int | None = None
) -> dict[str, RawText]:
    """Read the files of raw text of a split.

    Args:
        split: name of the split, for messages.
        files: its files.
        max_sentences: number of sentences to keep, spread over the files in proportion to their
            sizes; of each file the first ones. None keeps all.

    Returns:
        The text of each pair of files, by a short name of its source.

    Raises:
        UserError: the split has no files, a file is missing, or the two sides differ in length.
    """
    if not files:
        raise UserError(
            f"data.raw.{split}: lists no files, so there is no text to translate; add them"
        )
    texts = [RawText(*read_pairs(pair)) for pair in files]
    counts = [len(text.source) for text in texts]
    if max_sentences is not None:
        counts = spread(max_sentences, counts)
    names = _short_names([pair.source for pair in files])
    return {
        name: RawText(text.source[:count], text.target[:count])
        for name, text, count in zip(names, texts, counts, strict=True)
    }


def read_raw(split: str, files: Sequence[PairPath], tags: Sequence[Sequence[str]] = ()) -> RawText:
    """Read the raw text of a split, concatenating its files; see `read_files`.

    Args:
        split: name of the split, for messages.
        files: its files.
        tags: tags at the start of the sources of each file; empty: none.
    """
    texts = read_files(split, files)
    if any(tags):
        kinds = [HeldOut(("", ""), tuple(each)) for each in tags]
        texts = {
            name: text._replace(source=kind.tagged(text.source))
            for kind, (name, text) in zip(kinds, texts.items(), strict=True)
        }
    return _joined(texts)


def _joined(texts: Mapping[str, RawText]) -> RawText:
    return RawText(*(list(chain(*side)) for side in zip(*texts.values(), strict=True)))


def spread(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide a number of sentences among files in proportion to their sizes.

    Every file that has sentences gets at least one, as long as there are enough; the rest goes by
    largest remainders.
    """
    total = min(total, sum(sizes))
    first = [int(size > 0 and total >= len(sizes)) for size in sizes]
    rest, left = total - sum(first), sum(sizes) - sum(first)
    shares = [rest * (size - one) / max(left, 1) for size, one in zip(sizes, first, strict=True)]
    counts = [one + int(share) for one, share in zip(first, shares, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: int(shares[i]) - shares[i])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own, or with its folders or number where they are equal."""
    for names in ([path.name for path in paths], [path.as_posix() for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [f"{number}:{path.name}" for number, path in enumerate(paths, 1)]


class TranslationTask:
    """Translation, trained on sentence pairs and evaluated by text metrics on raw references.

    Args:
        data_dir: folder of the sentence pairs.
        tokenizers: tokenizers that made the ids of the pairs.
        raw: files of raw text by split.
        target_lang: language code of the target side.
        max_source_length: maximum source length in tokens, end symbol included.
        max_target_length: maximum target length in tokens, end symbol included.
        rouge_stemmer: whether ROUGE stems English words.
        num_samples: number of translations that are part of the figures of an evaluation, as text.
        source: source of the examples.
        expected: what the shards of each split should have been made from.
        parts: returns the corpora of a split, if it has several or its examples are not plain
            pairs.
        held_out: what each text of a split is; without it, all are in the languages of the task.
        cut: shortens examples that are too long; without it, they are left out.
    """

    def __init__(  # noqa: PLR0913  (what the builder reads from the experiment)
        self,
        data_dir: str | Path,
        tokenizers: Tokenizers,
        raw: Mapping[str, Sequence[PairPath]],
        target_lang: str,
        max_source_length: int | None,
        max_target_length: int | None,
        rouge_stemmer: bool,
        num_samples: int,
        source: SourceChoice = SHARDS,
        expected: Mapping[str, Expected] = MappingProxyType({}),
        parts: Parts = no_parts,
        held_out: Mapping[str, Sequence[HeldOut]] = MappingProxyType({}),
        cut: Cut | None = None,
    ) -> None:
        self.tokenizers, self.symbols = tokenizers, tokenizers.symbols
        self._data_dir = data_dir
        self._raw = raw
        self._target_lang, self._rouge_stemmer = target_lang, rouge_stemmer
        self._num_samples = num_samples
        self._max_source_length = max_source_length
        self._max_target_length = max_target_length
        self._source, self._expected, self._parts = source, expected, parts
        self._held_out, self._cut = held_out, cut
        self._metric_names: dict[str, str] = {}  # in the experiment, by the name of the figure

    def dataset(self, split: str) -> ParallelDataset:
        """Return the sentence pairs of a split, which must belong to the vocabulary."""
        fingerprint, expected = self.tokenizers.fingerprint, self._expected.get(split)
        source = open_source(self._source, self._data_dir, split, fingerprint, expected)
        limits = self._max_source_length, self._max_target_length
        files = self._files(split, len(source)) if split == "valid" else {}
        parts = self._parts(split, source)
        if self._cut is not None:
            source = self._cut(source)
        if parts:
            return CorporaDataset(source, parts, *limits, files)
        return ParallelDataset(source, *limits, files)

    def _files(self, split: str, total: int) -> dict[str, int]:
        """Return the number of pairs of each raw file, if they are those of the examples."""
        try:
            texts = read_files(split, self._raw.get(split, ()))
        except UserError:  # no such file here
            return {}
        files = {name: len(text.source) for name, text in texts.items()}
        return files if sum(files.values()) == total else {}

    def collate(
        self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]
    ) -> Batch[Seq2SeqInputs]:
        """Return the padded batch of some sentence pairs; see `Task.collate`."""
        assert isinstance(dataset, ParallelDataset)
        return dataset.collate(indices, self.symbols)

    def metric(self, name: str) -> Metric:
        """Return a metric that compares text; see `Task.metric`."""
        metric = self._find_metric(name, self._target_lang)
        if metric.needs != TEXT:
            raise UserError(
                f"validation.metrics: {name} compares {metric.needs}, but translation gives {TEXT}"
            )
        self._metric_names[metric.name] = name
        return metric

    def _metrics_in(self, metrics: Sequence[Metric], language: str) -> Sequence[Metric]:
        """Return the metrics for text in a language."""
        if language == self._target_lang:
            return metrics
        return [
            self._find_metric(self._metric_names.get(metric.name, metric.name), language)
            for metric in metrics
        ]

    def _find_metric(self, name: str, language: str) -> Metric:
        return find_metric(name, language, "validation.metrics", self._rouge_stemmer)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        search: BeamSearch,
        limits: BatchLimits,
        device: torch.device,
        share: Share,
        metrics: Sequence[Metric],
        max_sentences: int | None = None,
    ) -> dict[str, float | str]:
        """Translate a split and score the detokenized text; see `Task.evaluate`."""
        texts = read_files(split, self._raw[split], max_sentences)
        default = HeldOut(("", self._target_lang))
        kinds = self._held_out.get(split, [default] * len(texts))
        sources, references = _joined(texts)
        tagged = [
            line
            for kind, text in zip(kinds, texts.values(), strict=True)
            for line in kind.tagged(text.source)
        ]
        was_training = model.training
        model.eval()
        try:
            translations = translate(
                cast(TranslationModel, model),
                self.tokenizers,
                tagged,
                search,
                limits,
                device,
                share,
            )
        finally:
            model.train(was_training)
        figures: dict[str, float | str] = {}
        if translations is not None:
            scored = _scored(texts, kinds, translations.lines)
            lines = [line for each in scored for line in each.translations]
            with phase("scoring", may_take_long=True):
                for result in measure(metrics, lines, references):
                    figures[result.name] = result.value
                    figures[f"{result.name}_signature"] = result.signature
                figures |= figures_by_text(scored, partial(self._metrics_in, metrics))
            if self._num_samples:
                figures["samples"] = format_samples(tagged, lines, references, self._num_samples)
        if share.world_size > 1:
            figures = broadcast_object(figures)
        return figures


def _scored(
    texts: Mapping[str, RawText], kinds: Sequence[HeldOut], translations: Sequence[str]
) -> list[Scored]:
    """Divide the translations among the texts, without the tags at their start."""
    scored, start = [], 0
    for (name, text), kind in zip(texts.items(), kinds, strict=True):
        stop = start + len(text.target)
        lines = kind.untagged(translations[start:stop])
        scored.append(Scored(name, kind, lines, text.target))
        start = stop
    return scored
