"""Join, cut and extend the sentences of a `TokenBlock`, without a Python loop over them.

Shapes: B sentences. Each ends with the end symbol.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.source import TokenBlock


def _places(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the place of each token (sum of lengths,) in its sentence."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)


def join_sentences(block: TokenBlock, counts: NDArray[np.integer]) -> TokenBlock:
    """Join consecutive sentences; only the last end symbol stays.

    Args:
        block: the sentences.
        counts: numbers of sentences to join, whose sum is B.
    """
    if len(counts) == len(block.lengths):
        return block
    lengths = np.asarray(block.lengths, np.int64).copy()
    last = np.zeros(len(lengths), bool)
    last[np.cumsum(counts) - 1] = True
    is_end = _places(block.lengths) == np.repeat(block.lengths, block.lengths) - 1
    keep = ~is_end | np.repeat(last, block.lengths)
    lengths -= ~last
    return TokenBlock(block.tokens[keep], np.add.reduceat(lengths, np.cumsum(counts) - counts))


def cut_sentences(block: TokenBlock, most: NDArray[np.integer]) -> TokenBlock:
    """Cut sentences to at most `most` (B,) tokens each; the end symbol stays."""
    if (block.lengths <= most).all():
        return block
    places = _places(block.lengths)
    is_end = places == np.repeat(block.lengths, block.lengths) - 1
    keep = is_end | (places < np.repeat(most - 1, block.lengths))
    return TokenBlock(block.tokens[keep], np.minimum(block.lengths, most))


def prepend(block: TokenBlock, tags: Sequence[Sequence[int]]) -> TokenBlock:
    """Put tokens in front of each sentence.

    Args:
        block: the sentences.
        tags: (B) tokens for each sentence.
    """
    added = np.fromiter(map(len, tags), np.int64, len(tags))
    if not added.any():
        return block
    lengths = block.lengths + added
    tokens = np.empty(int(lengths.sum()), np.int64)
    is_tag = _places(lengths) < np.repeat(added, lengths)
    tokens[is_tag] = [tag for sentence in tags for tag in sentence]
    tokens[~is_tag] = block.tokens
    return TokenBlock(tokens, lengths)


def join_lengths(
    rows: NDArray[np.int64], lengths: NDArray[np.integer], most: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Divide pairs into documents: runs of consecutive rows within length limits.

    Args:
        rows: (N,) numbers of the pairs, ascending.
        lengths: (N, sides) their lengths, end symbols included.
        most: (sides,) most tokens of a document, end symbol included.

    Returns:
        Place among the pairs of the first one of each document (M,), number of its pairs (M,), and
        its lengths (M, sides). A pair that is longer than `most` is a document of its own.
    """
    ends = np.concatenate([np.zeros((1, lengths.shape[1]), np.int64), np.cumsum(lengths - 1, 0)])
    breaks = np.append(np.flatnonzero(np.diff(rows) != 1) + 1, len(rows))
    first, start = [], 0
    while start < len(rows):
        first.append(start)
        fits = [
            int(np.searchsorted(side, side[start] + limit - 1, side="right")) - 1
            for side, limit in zip(ends.T, most, strict=True)
        ]
        gap = int(breaks[np.searchsorted(breaks, start, side="right")])
        start = max(start + 1, min(*fits, gap))
    places = np.asarray(first)
    stops = np.append(places[1:], len(rows))
    return places, stops - places, ends[stops] - ends[places] + 1
