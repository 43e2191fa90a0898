"""Random choices within the rows of a block, and the symbols around rows.

Shapes: B rows; I items, those of one row after those of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.hashing import as_uniform, hashed_places, uniform
from ds_seq.data.source import TokenBlock
from ds_seq.text.tokenizer import Symbols

Counts = NDArray[np.integer]
"""(B,) number of items of each row."""
_KEY_BITS = 44  # of random bits by which items are ordered; the others number the rows


class RowDraws:
    """Random numbers that belong to rows, whatever else is in their block.

    Args:
        rows: (B,) numbers of the rows.
        key: seed and epoch.
    """

    def __init__(self, rows: NDArray[np.integer], key: Sequence[int]) -> None:
        self._rows, self._key = rows, tuple(key)

    def of_rows(self, purpose: int) -> NDArray[np.float64]:
        """Return a number (B,) in [0, 1) for each row.

        Args:
            purpose: what it is for; numbers of different purposes are independent.
        """
        return uniform(self._rows, *self._key, purpose)

    def of_items(self, purpose: int, counts: Counts) -> NDArray[np.float64]:
        """Return a number (I,) in [0, 1) for each item of each row."""
        return as_uniform(self._bits(purpose, counts))

    def below(self, limit: int, purpose: int, counts: Counts) -> NDArray[np.int64]:
        """Return a whole number (I,) in [0, limit) for each item of each row."""
        return (self.of_items(purpose, counts) * limit).astype(np.int64)

    def rounded(self, amounts: NDArray[np.floating], purpose: int) -> NDArray[np.int64]:
        """Return amounts (B,) >= 0 rounded up or down at random, so that their means stay."""
        return np.floor(amounts + self.of_rows(purpose)).astype(np.int64)

    def shuffled(self, purpose: int, counts: Counts) -> NDArray[np.int64]:
        """Return the items (I,) in random order within each row."""
        row = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        bits = self._bits(purpose, counts) >> np.uint64(64 - _KEY_BITS)
        # equal bits are ordered by place, so that the order does not depend on the block
        return np.argsort((row << np.uint64(_KEY_BITS)) | bits, kind="stable")

    def chosen(self, picks: Counts, purpose: int, counts: Counts) -> NDArray[np.bool_]:
        """Choose `picks` (B,) of the items of each row at random; return which (I,)."""
        result = np.zeros(int(counts.sum()), bool)
        result[self.shuffled(purpose, counts)] = places(counts) < np.repeat(picks, counts)
        return result

    def _bits(self, purpose: int, counts: Counts) -> NDArray[np.uint64]:
        return hashed_places(self._rows, counts, *self._key, purpose)


def places(counts: Counts) -> NDArray[np.int64]:
    """Return the place (I,) of each item in its row, from 0."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def sums(values: NDArray[np.integer | np.bool_], counts: Counts) -> NDArray[np.int64]:
    """Return the sum (B,) of the values (I,) of each row; of a row without items it is 0."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts)
    return running[ends] - running[ends - counts]


def sums_before(values: NDArray[np.integer | np.bool_], counts: Counts) -> NDArray[np.int64]:
    """Return the sum (I,) of the values in front of each item in its row."""
    running = np.cumsum(values, dtype=np.int64) - values
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    return running - np.repeat(first[np.cumsum(counts) - counts], counts)


def ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the numbers from each start on, `lengths` of them, one range after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def unframed(block: TokenBlock, symbols: Symbols) -> TokenBlock:
    """Return rows without the symbols around them; see `Symbols.unframed`."""
    front, back = len(symbols.opening), 1 + len(symbols.closing)
    lengths = block.lengths.astype(np.int64)
    at = places(lengths)
    keep = (at >= front) & (at < np.repeat(lengths - back, lengths))
    return TokenBlock(block.tokens[keep].astype(np.int64), lengths - front - back)


def framed(block: TokenBlock, symbols: Symbols) -> TokenBlock:
    """Return rows with the symbols around them; see `Symbols.framed`."""
    front, back = symbols.opening, (symbols.eos, *symbols.closing)
    lengths = block.lengths + len(front) + len(back)
    tokens = np.empty(int(lengths.sum()), np.int64)
    starts = np.cumsum(lengths) - lengths
    for place, symbol in enumerate(front):
        tokens[starts + place] = symbol
    for place, symbol in enumerate(back):
        tokens[starts + lengths - len(back) + place] = symbol
    tokens[ranges(starts + len(front), block.lengths)] = block.tokens
    return TokenBlock(tokens, lengths)


def without(block: TokenBlock, ids: NDArray[np.integer]) -> TokenBlock:
    """Return rows without some ids, which may leave none of a row."""
    is_kept = ~np.isin(block.tokens, ids)
    return TokenBlock(block.tokens[is_kept], sums(is_kept, block.lengths))
