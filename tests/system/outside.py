"""Parts that stand outside ds_seq, as a user's package would: a source and a task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ds_seq.config.data import DataConfig
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.source import Dataset, Source, TokenBlock
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits, Share, translate
from ds_seq.scores.metric import Measured, Metric, measure
from ds_seq.search.beam_search import BeamSearch
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizer, Tokenizers


class MemorySource:
    """Sentences in memory.

    Args:
        sides: for each side as many sentences, with the end symbol.
        vocab: of the ids.
    """

    def __init__(self, sides: Sequence[Sequence[Sequence[int]]], vocab: Tokenizer) -> None:
        self._sides = sides
        self.vocab_hash, self.vocab_size = vocab.fingerprint, len(vocab)
        self.lengths = np.array([list(map(len, side)) for side in sides], np.int32).T
        self.fingerprint = hashlib.sha256(repr(sides).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: NDArray[np.integer], /) -> tuple[TokenBlock, ...]:
        return tuple(
            TokenBlock(
                np.concatenate([np.asarray(side[row]) for row in indices]),
                self.lengths[indices, column],
            )
            for column, side in enumerate(self._sides)
        )


def reversed_words(
    folder: str, split: str, vocab_hash: str, *, pairs: int, wrong: bool = False
) -> Source:
    """A source: a few tokens, and the same ones from the last to the first."""
    vocab = SentencePieceTokenizer.load(Path(folder) / "vocab.model")
    end = vocab.symbols.eos
    random = np.random.default_rng(len(split))
    sources = [random.integers(5, 15, random.integers(2, 9)).tolist() for _ in range(pairs)]
    targets = [[*sentence[::-1], end] for sentence in sources]
    source = MemorySource([[[*sentence, end] for sentence in sources], targets], vocab)
    assert source.vocab_hash == vocab_hash
    if wrong:
        source.vocab_hash = "f" * 64
    return source


class _Copied:
    """A source of one side, twice."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        self.vocab_hash, self.vocab_size = source.vocab_hash, source.vocab_size
        self.fingerprint = source.fingerprint
        self.lengths = source.lengths.repeat(2, axis=1)

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: NDArray[np.integer], /) -> tuple[TokenBlock, ...]:
        return self._source.gather(indices) * 2


class Lines:
    """A dataset of one side."""

    def __init__(self, source: MemorySource) -> None:
        self.lengths = source.lengths
        self.num_left_out = 0
        self.pairs = ParallelDataset(_Copied(source))

    def __len__(self) -> int:
        return len(self.lengths)


def _misses(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measured:
    wrong = [a != b for a, b in zip(hypotheses, references[0], strict=True)]
    return Measured(100.0 * sum(wrong) / len(wrong))


class CopyTask:
    """Learns to say a line again; text of one side is all it needs.

    Args:
        data: the section; of the raw text it takes the sources.
        lines: most lines of a split.
    """

    def __init__(self, data: DataConfig, lines: int) -> None:
        vocab = SentencePieceTokenizer.load(f"{data.dir}/vocab.model")
        self.tokenizers, self.symbols = Tokenizers.shared(vocab), vocab.symbols
        self._files = {"train": data.raw.train[0].source, "valid": data.raw.valid[0].source}
        self._lines = lines

    def _text(self, split: str) -> list[str]:
        return Path(self._files[split]).read_text(encoding="utf-8").splitlines()[: self._lines]

    def dataset(self, split: str) -> Dataset:
        vocab = self.tokenizers.source
        ids = [[*vocab.encode(line), self.symbols.eos] for line in self._text(split)]
        return Lines(MemorySource([ids], vocab))

    def collate(self, dataset: Dataset, indices: NDArray[np.integer] | Sequence[int]) -> Batch:
        assert isinstance(dataset, Lines)
        return dataset.pairs.collate(indices, self.symbols)

    def metric(self, name: str) -> Metric:
        if name != "misses":
            raise UserError(f"validation.metrics: copying has `misses` alone, not {name!r}")
        return Metric("misses", higher_is_better=False, compute=_misses)

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
        assert share.world_size == 1
        lines = self._text(split)[:max_sentences]
        copies: Any = translate(model, self.tokenizers, lines, search, limits, device, share)  # type: ignore[arg-type]
        figures: dict[str, float | str] = {}
        for score in measure(metrics, copies.lines, lines):
            figures |= {score.name: score.value, f"{score.name}_signature": score.signature}
        return figures
