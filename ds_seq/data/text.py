"""The data set of a language model: blocks of text of several corpora.

Shapes: N blocks, B blocks of a batch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq.data.batch import Batch
from ds_seq.data.corpora import Part
from ds_seq.data.source import FixedLengths, Key, Source
from ds_seq.data.text_batch import TextInputs, empty_text_batch, text_batch
from ds_seq.data.text_blocks import TextBlock, TextBlocks
from ds_seq.names import TextUnit
from ds_seq.text.tokenizer import Symbols

_NUM_SAMPLED = 4096  # blocks whose ids are part of a fingerprint


class TextDataset(FixedLengths):
    """Blocks of text of one side, numbered from 0; an `InParts`.

    Where a mix has several copies of a block in an epoch, copy n of block i is number `n * N + i`.

    Args:
        source: the lines.
        parts: the corpora, or files of a held-out split; `Part.rows` are their lines.
        unit: what blocks are made of.
        most: number of tokens of the longest block.
        moves: whether blocks of tokens begin elsewhere in each epoch.
        context: number of tokens in front of each block that are read and not scored; 0 if blocks
            move.
        empty_length: number of tokens of an empty line.

    Attributes:
        source: the lines.
        parts: the corpora; `Part.rows` are their blocks.
        lengths: (N, 1) tokens of each block, with those in front of it.
        first: (parts + 1,) number of the first block of each corpus, and N.
        lines: numbers of the lines of each corpus.
        files: names of the corpora, and their numbers of blocks.
        num_left_out: 0.

    Raises:
        UserError: the source has two sides, or a corpus has no two tokens.
    """

    num_left_out = 0

    def __init__(
        self,
        source: Source,
        parts: Sequence[Part],
        unit: TextUnit,
        most: int,
        moves: bool = False,
        context: int = 0,
        empty_length: int = 1,
    ) -> None:
        self.source = source
        corpora = [(part.name, part.rows) for part in parts]
        self._blocks = TextBlocks(source, corpora, unit, most, empty_length)
        self.lengths: NDArray[np.integer] = self._blocks.lengths_with(context)
        self.first = self._blocks.first
        bounds = zip(parts, self.first[:-1].tolist(), self.first[1:].tolist(), strict=True)
        self.parts = tuple(
            Part(part.name, range(start, stop), part.languages, fingerprint=part.fingerprint)
            for part, start, stop in bounds
        )
        self.lines = tuple(part.rows for part in parts)
        self.files: Mapping[str, int] = MappingProxyType(
            {part.name: len(part.rows) for part in self.parts}
        )
        self._moves, self._context = moves, context
        self._key: Key | None = None

    def by_file(self) -> list[NDArray[np.int64]]:
        """Return the numbers of the blocks of each corpus or file."""
        return [np.arange(part.rows.start, part.rows.stop) for part in self.parts]

    def in_epoch(self, key: Key, stage: int = 0) -> TextDataset:
        """Return the blocks as they are in an epoch; before, they begin at the first token.

        Args:
            key: seed and epoch.
            stage: number of the stage, which changes nothing.
        """
        other = copy.copy(self)
        other._key = key if self._moves else None
        return other

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of the content of a corpus: lengths of all blocks, ids of some."""
        part = self.parts[number]
        digest = hashlib.sha256(part.fingerprint.encode())
        own = self.lengths[part.rows.start : part.rows.stop]
        digest.update(np.ascontiguousarray(own, np.int32).tobytes())
        some = np.unique(np.linspace(part.rows.start, part.rows.stop - 1, _NUM_SAMPLED).astype(int))
        tokens = self._blocks.gather(some).block.tokens
        digest.update(np.ascontiguousarray(tokens, np.int64).tobytes())
        return digest.hexdigest()

    def gather(self, numbers: NDArray[np.int64]) -> TextBlock:
        """Copy at least one block, as it is in this epoch, with what is read in front of it."""
        return self._blocks.gather(numbers, self._key, self._context)

    def collate(
        self,
        indices: NDArray[np.integer] | Sequence[int],
        symbols: Symbols,
        pad_to_multiple: int = 1,
    ) -> Batch[TextInputs]:
        """Build the batch of some blocks.

        Args:
            indices: (B,) their numbers; with B = 0 the result is `empty_text_batch`.
            symbols: special symbols of the vocabulary.
            pad_to_multiple: number to a multiple of which T is rounded up.
        """
        numbers = np.asarray(indices, np.int64)
        if len(numbers) == 0:
            return empty_text_batch(symbols)
        numbers = numbers % len(self)  # a new array: the caller's stays
        text = self.gather(numbers)
        first = torch.from_numpy(np.where(text.previous < 0, symbols.start, text.previous))
        context = torch.from_numpy(text.num_context) if self._context else None
        rows = torch.from_numpy(numbers)
        return text_batch(text.block, symbols, rows, first, context, pad_to_multiple)
