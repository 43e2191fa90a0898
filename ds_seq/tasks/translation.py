"""Translation from one language to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.data.clean import normalise
from ds_seq.data.dataset import Batch, ParallelDataset
from ds_seq.data.shards import ShardReader
from ds_seq.data.vocab import Vocab
from ds_seq.distributed import broadcast_object
from ds_seq.errors import UserError
from ds_seq.generation.beam_search import BeamSearch
from ds_seq.generation.scoring import Scorer
from ds_seq.generation.text import read_parallel
from ds_seq.generation.translate import BatchLimits, Share, translate
from ds_seq.models.seq2seq import Seq2SeqTransformer

_NUM_SAMPLES = 5


class RawSplit(NamedTuple):
    """Two files of raw parallel text."""

    source: str | Path
    target: str | Path


class RawText(NamedTuple):
    """Raw parallel text: line n of one side translates line n of the other."""

    source: list[str]
    target: list[str]


def read_raw(split: str, files: Sequence[RawSplit]) -> RawText:
    """Read the raw text of a split, all its files one after the other.

    Raises:
        UserError: the split has no files, one is missing, or two sides do not match.
    """
    if not files:
        raise UserError(
            f"data.raw.{split}: names no text, so there is nothing to translate and compare with"
        )
    text = RawText([], [])
    for pair in files:
        source, target = read_parallel(pair.source, pair.target)
        text.source.extend(source)
        text.target.extend(target)
    return text


class TranslationTask:
    """Learns from shards, is judged by BLEU and chrF against raw references.

    Args:
        data_dir: folder of the shards.
        vocab: what the shards were made with.
        raw: files of raw text by split.
        target_lang: language code of the target side.
        max_source_length: longest source to learn from in tokens, end symbol included.
        max_target_length: longest target likewise.
        nfkc: whether text was NFKC-normalised when it was prepared.
    """

    def __init__(
        self,
        data_dir: str | Path,
        vocab: Vocab,
        raw: Mapping[str, Sequence[RawSplit]],
        target_lang: str,
        max_source_length: int | None,
        max_target_length: int | None,
        nfkc: bool,
    ) -> None:
        self.vocab = vocab
        self._data_dir = data_dir
        self._raw = raw
        self._target_lang = target_lang
        self._max_source_length = max_source_length
        self._max_target_length = max_target_length
        self._nfkc = nfkc

    def dataset(self, split: str) -> ParallelDataset:
        """The sentence pairs of a split; its shards must fit the vocabulary."""
        reader = ShardReader(self._data_dir, split, self.vocab.hash)
        return ParallelDataset(reader, self._max_source_length, self._max_target_length)

    def collate(
        self, dataset: ParallelDataset, indices: NDArray[np.integer] | Sequence[int]
    ) -> Batch:
        """See `Task.collate`."""
        return dataset.collate(indices, self.vocab.pad_id, self.vocab.eos_id)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        search: BeamSearch,
        limits: BatchLimits,
        device: torch.device,
        share: Share,
        max_sentences: int | None = None,
    ) -> dict[str, float | str]:
        """See `Task.evaluate`: ``bleu`` and ``chrf`` of detokenised text."""
        scorer = Scorer(self._target_lang)  # first, so that all ranks fail alike if it does
        text = read_raw(split, self._raw[split])
        sources, references = text.source[:max_sentences], text.target[:max_sentences]
        lines = [normalise(line, self._nfkc) for line in sources]
        was_training = model.training
        model.eval()
        try:
            translations = translate(
                cast(Seq2SeqTransformer, model), self.vocab, lines, search, limits, device, share
            )
        finally:
            model.train(was_training)
        figures: dict[str, float | str] = {}
        if translations is not None:
            for result in scorer(translations.lines, references):
                figures[result.name] = result.value
                figures[f"{result.name}_signature"] = result.signature
            figures["samples"] = format_samples(sources, translations.lines, references)
        if share.world_size > 1:
            figures = broadcast_object(figures)
        return figures


def format_samples(
    sources: Sequence[str],
    translations: Sequence[str],
    references: Sequence[str] | None,
    num_samples: int = _NUM_SAMPLES,
) -> str:
    """Some sentences with translation and reference, spread evenly over the text."""
    count = min(num_samples, len(sources))
    samples = []
    for i in (len(sources) * n // count for n in range(count)):
        samples += [f"source       {sources[i]}", f"translation  {translations[i]}"]
        if references is not None:
            samples.append(f"reference    {references[i]}")
        samples.append("")
    return "\n".join(samples[:-1])
