"""Data sets of noisy text: the noise of an example is drawn anew in each epoch.

What is drawn is a function of (seed, epoch, number of the row), so it is the same on any rank, in
any batch and after a resume.

Shapes: N examples, B examples of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ds_seq.data.batch import Batch, Seq2SeqInputs, empty_seq2seq_batch, rows_within, seq2seq_batch
from ds_seq.data.corpora import Part
from ds_seq.data.noise.masking import Masking
from ds_seq.data.noise.rows import RowDraws, framed, ranges, unframed, without
from ds_seq.data.noise.text import NoiseVocab, TextNoise
from ds_seq.data.source import FixedLengths, Key, Source, TokenBlock
from ds_seq.data.text import TextDataset
from ds_seq.data.text_batch import MaskedInputs, TextInputs, empty_text_batch, masked_batch
from ds_seq.errors import UserError
from ds_seq.text.tokenizer import Symbols

_SIDE = 1 << 40  # between the numbers of rows of both sides
_VALIDATION = (0, 0)  # instead of seed and epoch: each validation has the same noise


class Texts(Protocol):
    """Rows of text of one language or more, without the symbols around them, numbered from 0."""

    @property
    def parts(self) -> Sequence[Part]:
        """The corpora; `Part.rows` are their rows."""

    @property
    def first(self) -> NDArray[np.integer]:
        """(parts + 1,) number of the first row of each corpus, and N."""

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of a corpus."""

    @property
    def lengths(self) -> NDArray[np.integer]:
        """(N,) number of tokens of each row, or more."""

    def numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return numbers (B,) that tell rows apart, on which their noise depends.

        Rows of both sides of a pair differ by a multiple of 2 ** 40.
        """

    def gather(self, indices: NDArray[np.int64], key: Key) -> TokenBlock:
        """Copy at least one row.

        Args:
            indices: (B,) numbers of the rows.
            key: seed and epoch.
        """


class SideTexts:
    """One side of pairs, or both, those of the source before those of the target.

    Args:
        source: the pairs.
        sides: columns of the sides, and the symbols around their sentences.
    """

    def __init__(self, source: Source, sides: Sequence[tuple[int, Symbols]]) -> None:
        self._source, self._sides = source, tuple(sides)
        self.parts = (Part("pairs", range(len(source)), ("", "")),)
        self.first: NDArray[np.integer] = np.asarray([0, len(sides) * len(source)])
        self.lengths: NDArray[np.integer] = np.concatenate(
            [
                source.lengths[:, column] - np.int32(len(symbols.framed(())))
                for column, symbols in sides
            ]
        )

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of the pairs."""
        return self._source.fingerprint

    def numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Texts.numbers`."""
        place, rows = np.divmod(indices, len(self._source))
        columns = np.asarray([column for column, _ in self._sides])
        return rows + columns[place] * _SIDE

    def gather(self, indices: NDArray[np.int64], key: Key) -> TokenBlock:
        """See `Texts.gather`."""
        place, rows = np.divmod(indices, len(self._source))
        order, blocks = [], []
        for number, (column, symbols) in enumerate(self._sides):
            chosen = np.flatnonzero(place == number)
            if len(chosen):
                order.append(chosen)
                blocks.append(unframed(self._source.gather(rows[chosen])[column], symbols))
        return blocks[0] if len(blocks) == 1 else _in_order(blocks, np.concatenate(order))


def _in_order(blocks: Sequence[TokenBlock], places: NDArray[np.int64]) -> TokenBlock:
    """Return the rows of blocks as one, each at its place."""
    tokens, lengths = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    rows = np.argsort(places)
    starts = np.cumsum(lengths) - lengths
    return TokenBlock(tokens[ranges(starts[rows], lengths[rows])], lengths[rows])


class BlockTexts:
    """Blocks of text of one side.

    Args:
        blocks: the blocks.
        symbols: symbols around the lines of the text.
    """

    def __init__(self, blocks: TextDataset, symbols: Symbols) -> None:
        self._blocks, self._eos = blocks, symbols.eos
        self._around = np.asarray([*symbols.opening, *symbols.closing], np.int64)
        self.parts, self.first = blocks.parts, blocks.first
        self.lengths: NDArray[np.integer] = blocks.lengths[:, 0]

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of a corpus."""
        return self._blocks.fingerprint_of(number)

    def numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Texts.numbers`."""
        return indices

    def gather(self, indices: NDArray[np.int64], key: Key) -> TokenBlock:
        """See `Texts.gather`.

        The end symbols between the lines of a block stay; other symbols around lines, such as a
        start symbol, do not, as a model meets them at the ends of a whole text.
        """
        block = self._blocks.in_epoch(key).gather(indices).block
        if len(self._around):
            block = without(block, self._around)
        last = np.cumsum(block.lengths) - 1
        # a row may be empty now
        is_end = (np.append(block.tokens, -1)[last] == self._eos) & (block.lengths > 0)
        tokens = np.delete(block.tokens, last[is_end]).astype(np.int64)
        return TokenBlock(tokens, block.lengths - is_end)


class Noise(Protocol):
    """What makes inputs and targets of rows of text, all without the symbols around them."""

    def lengths(self, lengths: NDArray[np.integer], /) -> NDArray[np.int64]:
        """Return the lengths (N, 2) of inputs and targets of rows of some lengths (N,), or more."""

    def __call__(self, block: TokenBlock, draws: RowDraws, /) -> tuple[TokenBlock, TokenBlock]:
        """Return inputs and targets."""


class TextToRestore(NamedTuple):
    """The noises of BART; the target is the whole text."""

    noise: TextNoise
    vocab: NoiseVocab

    def lengths(self, lengths: NDArray[np.integer]) -> NDArray[np.int64]:
        """See `Noise.lengths`."""
        return np.stack([lengths, lengths], axis=1).astype(np.int64)

    def __call__(self, block: TokenBlock, draws: RowDraws) -> tuple[TokenBlock, TokenBlock]:
        """See `Noise`."""
        return self.noise(block, draws, self.vocab), block


class NoisyDataset(FixedLengths):
    """Rows of text within length limits, which a subclass turns into batches.

    Args:
        texts: all rows.
        lengths: (N, sides) lengths of the examples that they make, symbols around them included.
        limits: (sides) most tokens of each side.

    Where a mix has several copies of an example in an epoch, copy n of example i has the number
    `n * N + i`, so that each has other noise.

    Attributes:
        lengths: (N, sides) lengths of the kept examples, or more.
        parts: the corpora of all rows.
        first: (parts + 1,) number of the first example of each corpus, and N.
        num_left_out: number of rows beyond the limits.

    Raises:
        UserError: no row is within the limits.
    """

    def __init__(
        self, texts: Texts, lengths: NDArray[np.integer], limits: Sequence[int | None]
    ) -> None:
        self._texts, self._key = texts, _VALIDATION
        self._rows = rows_within(lengths, limits)
        self.lengths: NDArray[np.integer] = lengths[self._rows].astype(np.int32)
        self.num_left_out = len(lengths) - len(self._rows)
        self.parts = texts.parts
        self.first: NDArray[np.integer] = np.searchsorted(self._rows, texts.first)
        if len(self._rows) == 0:
            raise UserError(
                f"none of {len(lengths):,} rows of text is within data.max_source_length and "
                "data.max_target_length with its noise; raise them"
            )

    def in_epoch(self, key: Key, stage: int = 0) -> NoisyDataset:
        """Return the examples with the noise of an epoch; before, it is that of validations."""
        other = copy.copy(self)
        other._key = key
        return other

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of the content of a corpus."""
        return self._texts.fingerprint_of(number)

    def _rows_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._rows[indices % len(self)].astype(np.int64)

    def _pairs(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the numbers (B,) of the pairs or blocks of some examples, for reports."""
        return torch.from_numpy(self._texts.numbers(self._rows_of(indices)) % _SIDE)

    def _gathered(self, indices: NDArray[np.int64]) -> tuple[TokenBlock, RowDraws]:
        """Return rows, and the random numbers of their noise."""
        rows = self._rows_of(indices)
        copies = indices // len(self) * (2 * _SIDE)
        draws = RowDraws(self._texts.numbers(rows) + copies, self._key)
        return self._texts.gather(rows, self._key), draws


class DenoisingDataset(NoisyDataset):
    """Text with noise as the source, and what a model has to write as the target.

    Args:
        texts: all rows.
        noise: makes both sides.
        symbols: symbols around sources, and around targets.
        limits: most tokens of a source, and of a target; None: no limit.
    """

    def __init__(
        self,
        texts: Texts,
        noise: Noise,
        symbols: tuple[Symbols, Symbols],
        limits: tuple[int | None, int | None],
    ) -> None:
        self._noise, self._symbols = noise, symbols
        around = [len(each.framed(())) for each in symbols]
        super().__init__(texts, noise.lengths(texts.lengths) + around, limits)

    def collate(self, indices: NDArray[np.integer] | Sequence[int]) -> Batch[Seq2SeqInputs]:
        """Build the batch of some examples; of none, the empty batch."""
        numbers = np.asarray(indices, np.int64)
        if len(numbers) == 0:
            return empty_seq2seq_batch(self._symbols[1])
        sides = self._noise(*self._gathered(numbers))
        source, target = map(framed, sides, self._symbols)
        return seq2seq_batch(source, target, self._symbols[1], self._pairs(numbers))


class MaskedDataset(NoisyDataset):
    """Text of which some tokens are hidden, and what they were.

    Args:
        texts: all rows.
        masking: hides tokens.
        vocab: what it has to know about the vocabulary.
        symbols: symbols around texts.
        limit: most tokens of a text; None: no limit.
    """

    def __init__(
        self,
        texts: Texts,
        masking: Masking,
        vocab: NoiseVocab,
        symbols: Symbols,
        limit: int | None,
    ) -> None:
        self._masking, self._vocab, self._symbols = masking, vocab, symbols
        around = len(symbols.framed(()))
        super().__init__(texts, texts.lengths[:, None] + np.int32(around), [limit])

    def collate(self, indices: NDArray[np.integer] | Sequence[int]) -> Batch[TextInputs]:
        """Build the batch of some examples; of none, the empty batch."""
        numbers = np.asarray(indices, np.int64)
        if len(numbers) == 0:
            return empty_text_batch(self._symbols, MaskedInputs)
        block, draws = self._gathered(numbers)
        masked = self._masking(block, draws, self._vocab)
        read, written = (framed(each, self._symbols) for each in (masked.block, block))
        is_scored = np.zeros(len(read.tokens), bool)
        starts = np.cumsum(read.lengths) - read.lengths + len(self._symbols.opening)
        is_scored[ranges(starts, block.lengths)] = masked.is_predicted
        return masked_batch(read, written, is_scored, self._symbols, self._pairs(numbers))
