"""Text of one side, cut into blocks: consecutive tokens, documents, or lines.

The tokens of a corpus are one stream, line after line, each with its end symbol. A block is a part
of it. Blocks of tokens join lines and documents, and may begin elsewhere in each epoch: then the
stream is a ring, so that every token is in exactly one block, and the number of blocks is the same
in every epoch. Blocks of documents or lines end where these do; longer ones are cut.

Shapes: N lines, K blocks, B blocks of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.source import Key, Source, TokenBlock
from ds_seq.errors import UserError
from ds_seq.names import TextUnit


class TextBlock(NamedTuple):
    """Blocks of text, each with the token before it."""

    block: TokenBlock
    """The tokens of the blocks."""
    previous: NDArray[np.int64]
    """(B,) the token before each block, on which its first one depends; -1: there is none."""
    num_context: NDArray[np.int64]
    """(B,) number of tokens at the start of each that belong to the block before."""


class _Stream(NamedTuple):
    """The lines of a corpus, and its blocks.

    Attributes:
        rows: numbers of its lines.
        ends: (lines,) number of tokens up to the end of each line.
        starts: (blocks,) number of the first token of each block.
        lengths: (blocks,) number of tokens of each block.
        before: (blocks,) number of tokens before each block in what was cut: corpus, document or
            line.
    """

    rows: range
    ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    before: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self.ends[-1])


class TextBlocks:
    """The blocks of the corpora of a split, one after the other.

    Args:
        source: lines, with one side.
        corpora: numbers of the lines of each corpus, by name; no block is in two of them.
        unit: what blocks are made of.
        most: number of tokens of the longest block.
        empty_length: number of tokens of an empty line, which ends a document.

    Attributes:
        lengths: (K, 1) number of tokens of each block.
        first: (corpora + 1,) number of the first block of each corpus, and K.

    Raises:
        UserError: the source has two sides, or a corpus has no two tokens.
    """

    def __init__(
        self,
        source: Source,
        corpora: Sequence[tuple[str, range]],
        unit: TextUnit,
        most: int,
        empty_length: int = 1,
    ) -> None:
        self._source, self._most = source, most
        self.is_ring = unit == "tokens"
        self._streams = [
            _stream(name, source.lengths, rows, unit, most, empty_length) for name, rows in corpora
        ]
        self.lengths = np.concatenate([each.lengths for each in self._streams])[:, None]
        self.first = np.cumsum([0, *(len(each.starts) for each in self._streams)])

    def lengths_with(self, context: int) -> NDArray[np.int64]:
        """Return the lengths (K, 1) of the blocks with up to `context` tokens in front of each."""
        before = np.concatenate([each.before for each in self._streams])
        return self.lengths + np.minimum(context, before)[:, None]

    def gather(
        self, blocks: NDArray[np.integer], key: Key | None = None, context: int = 0
    ) -> TextBlock:
        """Copy at least one block.

        Args:
            blocks: (B,) numbers of the blocks.
            key: seed and epoch by which blocks of tokens begin elsewhere; None: at the first one.
            context: number of tokens that are copied in front of a block, fewer at the start of
                what was cut; only without a key.
        """
        numbers = np.searchsorted(self.first, blocks, side="right") - 1
        # of each block: its first line, of how many lines of a corpus that begin where, how many
        # lines it has, and how many tokens precede it in the first one
        rows, sizes, offsets, counts, skips = np.empty((5, len(blocks)), np.int64)
        lengths, num_context = self.lengths[blocks, 0].copy(), np.zeros(len(blocks), np.int64)
        opens = np.zeros(len(blocks), bool)
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            stream = self._streams[number]
            places = blocks[chosen] - self.first[number]
            starts = stream.starts[places]
            if key is not None and self.is_ring:
                draw = np.random.default_rng([*key, number])
                starts = starts + int(draw.integers(min(self._most, stream.size)))
            num_context[chosen] = np.minimum(context, stream.before[places])
            lengths[chosen] += num_context[chosen]
            starts = starts - num_context[chosen]
            opens[chosen] = (stream.before[places] == num_context[chosen]) & (not self.is_ring)
            before = (starts - 1) % stream.size
            last = before + lengths[chosen]
            around = last >= stream.size
            first_row = np.searchsorted(stream.ends, before, side="right")
            last_row = np.searchsorted(stream.ends, last % stream.size, side="right")
            counts[chosen] = last_row - first_row + 1 + around * len(stream.rows)
            rows[chosen] = first_row
            skips[chosen] = before - np.where(first_row > 0, stream.ends[first_row - 1], 0)
            sizes[chosen], offsets[chosen] = len(stream.rows), stream.rows.start
        inner = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        lines = (np.repeat(rows, counts) + inner) % np.repeat(sizes, counts)
        text = self._cut(lines + np.repeat(offsets, counts), counts, skips, lengths, opens)
        return text._replace(num_context=num_context)

    def _cut(
        self,
        rows: NDArray[np.int64],
        counts: NDArray[np.int64],
        skips: NDArray[np.int64],
        lengths: NDArray[np.int64],
        opens: NDArray[np.bool_],
    ) -> TextBlock:
        """Return the blocks whose lines are `rows`, without what is before and behind them."""
        (lines,) = self._source.gather(rows)
        ends = np.concatenate([[0], np.cumsum(lines.lengths)])
        begins = ends[np.cumsum(counts) - counts] + skips  # where the token before a block is
        inner = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = lines.tokens[np.repeat(begins + 1, lengths) + inner]
        previous = lines.tokens[begins].astype(np.int64)
        previous[opens] = -1
        return TextBlock(TokenBlock(tokens, lengths), previous, np.zeros_like(lengths))


def _stream(
    name: str,
    lengths: NDArray[np.integer],
    rows: range,
    unit: TextUnit,
    most: int,
    empty_length: int,
) -> _Stream:
    if lengths.shape[1] != 1:
        raise UserError(
            f"{name}: the shards have pairs, but this task reads text of one side; set "
            "data.language and run `ds-seq prepare` in another data.dir"
        )
    own = lengths[rows.start : rows.stop, 0].astype(np.int64)
    ends = np.cumsum(own)
    if len(own) == 0 or ends[-1] < 2:
        raise UserError(
            f"{name}: the text has only {0 if len(own) == 0 else ends[-1]} token, and a language "
            "model predicts each token from those before it; give more text"
        )
    begins = ends - own
    if unit == "tokens":
        units = np.asarray([[0, ends[-1]]])
    elif unit == "line":
        units = np.stack([begins, ends], axis=1)[own > empty_length]
    else:
        units = _documents(begins, ends, own > empty_length)
    if len(units) == 0:
        raise UserError(f"{name}: all lines of the text are empty; give text")
    sizes = units[:, 1] - units[:, 0]
    pieces = -(-sizes // most)
    places = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(units[:, 0], pieces) + most * places
    cut = np.minimum(np.repeat(units[:, 1], pieces) - starts, most)
    return _Stream(rows, ends, starts, cut, most * places)


def _documents(
    begins: NDArray[np.int64], ends: NDArray[np.int64], has_text: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the first token of each document, and the one behind its last (documents, 2)."""
    edges = np.diff(np.concatenate([[0], has_text.astype(np.int8), [0]]))
    first, after = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return np.stack([begins[first], ends[after - 1]], axis=1)
