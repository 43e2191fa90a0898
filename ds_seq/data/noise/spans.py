"""Span corruption of T5: spans become symbols, and the model writes what they stood for.

Raffel et al., 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", section 3.1.4, https://arxiv.org/abs/1910.10683. Numbers and lengths of the spans are
those of its code (`random_spans_noise_mask`): a row begins with text and ends with a span, and the
target has no symbol after its last span.

Shapes: B rows, S spans of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.noise.rows import RowDraws, places, sums
from ds_seq.data.source import TokenBlock

_KEPT, _MASKED = range(2)


class SpanCounts(NamedTuple):
    """What the noise of rows is, which follows from their lengths alone."""

    masked: NDArray[np.int64]
    """(B,) number of tokens in spans."""
    spans: NDArray[np.int64]
    """(B,) number of spans, at least 1."""


class SpanNoise(NamedTuple):
    """How much of a text is in spans."""

    share: float
    """Share of the tokens that are in spans."""
    span_mean: float
    """Mean number of tokens of a span."""
    sentinels: NDArray[np.int64]
    """Symbols that stand for the first span of a row, the second one, and so on."""

    def counts(self, lengths: NDArray[np.integer]) -> SpanCounts:
        """Return what the noise of rows of some lengths (B,) is, without symbols around them."""
        masked = np.clip(np.rint(lengths * self.share), 1, np.maximum(lengths - 1, 1))
        masked = np.where(lengths < 2, 0, masked).astype(np.int64)
        most = np.minimum(np.minimum(masked, lengths - masked), len(self.sentinels))
        spans = np.minimum(np.rint(masked / self.span_mean), most).astype(np.int64)
        return SpanCounts(masked, np.maximum(spans, 1))

    def lengths(self, lengths: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the lengths (B, 2) of inputs and targets of rows of some lengths (B,)."""
        masked, spans = self.counts(lengths)
        return np.stack([lengths - masked + spans, masked + spans], axis=1).astype(np.int64)

    def __call__(self, block: TokenBlock, draws: RowDraws) -> tuple[TokenBlock, TokenBlock]:
        """Return inputs, in which a symbol stands for each span, and targets, which have both."""
        masked, spans = self.counts(block.lengths)
        kept_lengths = _divided(block.lengths - masked, spans, draws, _KEPT)
        span_lengths = _divided(masked, spans, draws, _MASKED)
        both = np.stack([kept_lengths, span_lengths], axis=1).ravel()
        is_masked = np.repeat(np.arange(len(both)) % 2 == 1, both)
        symbols = self.sentinels[places(spans)]
        inputs = np.empty(int(kept_lengths.sum()) + len(symbols), np.int64)
        is_symbol = np.zeros(len(inputs), bool)
        is_symbol[np.cumsum(kept_lengths + 1) - 1] = True
        inputs[is_symbol], inputs[~is_symbol] = symbols, block.tokens[~is_masked]
        targets = np.empty(int(span_lengths.sum()) + len(symbols), np.int64)
        is_symbol = np.zeros(len(targets), bool)
        is_symbol[np.cumsum(span_lengths + 1) - span_lengths - 1] = True
        targets[is_symbol], targets[~is_symbol] = symbols, block.tokens[is_masked]
        lengths = self.lengths(block.lengths)
        return TokenBlock(inputs, lengths[:, 0]), TokenBlock(targets, lengths[:, 1])


def _divided(
    totals: NDArray[np.integer], parts: NDArray[np.int64], draws: RowDraws, purpose: int
) -> NDArray[np.int64]:
    """Divide numbers (B,) into parts of at least 1, all ways equally likely; too small ones into 1.

    Returns:
        The parts (S,), those of one row after those of another.
    """
    gaps = np.maximum(totals - 1, 0)  # after any item but the last, a part can end
    is_end = draws.chosen(parts - 1, purpose, gaps)
    ends = places(gaps)[is_end] + 1
    row_ends = np.cumsum(parts) - 1
    result = np.empty(int(parts.sum()), np.int64)
    is_last = np.zeros(len(result), bool)
    is_last[row_ends] = True
    result[~is_last], result[is_last] = ends, totals
    before = np.concatenate([[0], result[:-1]])
    before[row_ends - parts + 1] = 0
    assert (sums(is_end, gaps) == parts - 1).all()
    return result - before
