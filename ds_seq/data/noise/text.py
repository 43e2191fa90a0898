"""The five noises of BART: masking, deletion, infilling, permutation of sentences, rotation.

Lewis et al., 2020, "BART: Denoising Sequence-to-Sequence Pre-training for Natural Language
Generation, Translation, and Comprehension", section 2.2, https://arxiv.org/abs/1910.13461; the
settings of mBART: Liu et al., 2020, https://arxiv.org/abs/2001.08210, section 2.2.

Rows are documents or lines without the symbols around them. Each noise takes them and returns other
rows; none makes a row longer. Amounts that are no whole number are rounded at random, so that their
means are exact for short rows, too.

Shapes: B rows, I tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.noise.rows import RowDraws, places, ranges, sums, sums_before
from ds_seq.data.source import TokenBlock

(
    _HOW_MANY_SENTENCES,
    _WHICH_SENTENCES,
    _ORDER,
    _HOW_MANY_MASKED,
    _MASKED,
    _HOW_MANY_DELETED,
    _DELETED,
    _HOW_MANY_INFILLED,
    _SPANS,
    _WHERE,
    _IS_RANDOM,
    _RANDOM,
    _IS_ROTATED,
    _OFFSET,
) = range(14)
"""What a random number is for."""
_MORE_DRAWS = 8  # lengths of spans beyond twice the words to mask; a mean of 1 reaches these


@dataclass(frozen=True)
class NoiseVocab:
    """What noise has to know about a vocabulary.

    Attributes:
        mask: id of the mask.
        ordinary: (any,) ids of the tokens that stand for text.
        starts_word: (V,) whether a word begins with the token.
        ends_sentence: (V,) whether a sentence ends with the token.
    """

    mask: int
    ordinary: NDArray[np.int64]
    starts_word: NDArray[np.bool_]
    ends_sentence: NDArray[np.bool_]


class TextNoise(NamedTuple):
    """How much of a text each noise changes, in the order in which they are applied."""

    permute_sentences: float
    """Share of the sentences of a row that change places with each other."""
    mask: float
    """Share of the words of which each token becomes a mask."""
    delete: float
    """Share of the words that are deleted."""
    infill: float
    """Share of the words that are in spans, each of which becomes one mask."""
    span_mean: float
    """Mean number of words of a span, whose length has a Poisson distribution."""
    random: float
    """Share of the masks that are replaced with a random token."""
    rotate: float
    """Share of the rows that are rotated, so that they begin with another token."""

    def __call__(self, block: TokenBlock, draws: RowDraws, vocab: NoiseVocab) -> TokenBlock:
        """Return rows with all noises."""
        if self.permute_sentences:
            block = permute_sentences(block, draws, vocab, self.permute_sentences)
        if self.mask:
            block = mask_words(block, draws, vocab, self.mask, self.random)
        if self.delete:
            block = delete_words(block, draws, vocab, self.delete)
        if self.infill:
            block = infill(block, draws, vocab, self.infill, self.span_mean, self.random)
        if self.rotate:
            block = rotate(block, draws, self.rotate)
        return block


class Words(NamedTuple):
    """The words of rows: in each row its tokens from one start of a word to the next."""

    lengths: NDArray[np.int64]
    """(words,) number of tokens of each word."""
    counts: NDArray[np.int64]
    """(B,) number of words of each row."""


def words_of(block: TokenBlock, is_start: NDArray[np.bool_]) -> Words:
    """Divide rows into words.

    Args:
        block: the rows.
        is_start: (I,) which tokens begin a word; the first token of a row always does.
    """
    starts = is_start | (places(block.lengths) == 0)
    first = np.flatnonzero(starts)
    return Words(np.diff(np.append(first, len(starts))), sums(starts, block.lengths))


def permute_sentences(
    block: TokenBlock, draws: RowDraws, vocab: NoiseVocab, share: float
) -> TokenBlock:
    """Let a share of the sentences of each row change places at random.

    A sentence ends with the last of consecutive tokens that end sentences, or with its row.
    """
    ends = vocab.ends_sentence[block.tokens]
    goes_on = np.append(ends[1:], False)
    after_end = np.concatenate([[False], (ends & ~goes_on)[:-1]])
    sentences = words_of(block, after_end[: len(ends)])
    picks = draws.rounded(sentences.counts * share, _HOW_MANY_SENTENCES)
    moving = np.flatnonzero(draws.chosen(picks, _WHICH_SENTENCES, sentences.counts))
    # per row, as many sentences in a random order as there are places to fill
    order = draws.shuffled(_ORDER, sentences.counts)
    is_moving = np.zeros(len(sentences.lengths), bool)
    is_moving[moving] = True
    at_place = np.arange(len(sentences.lengths))
    at_place[moving] = order[is_moving[order]]
    starts = np.cumsum(sentences.lengths) - sentences.lengths
    tokens = block.tokens[ranges(starts[at_place], sentences.lengths[at_place])]
    return TokenBlock(tokens, block.lengths)


def mask_words(
    block: TokenBlock, draws: RowDraws, vocab: NoiseVocab, share: float, random: float
) -> TokenBlock:
    """Replace each token of a share of the words with a mask, or with a random token."""
    words = words_of(block, vocab.starts_word[block.tokens])
    picks = draws.rounded(words.counts * share, _HOW_MANY_MASKED)
    is_masked = np.repeat(draws.chosen(picks, _MASKED, words.counts), words.lengths)
    return _with_masks(TokenBlock(block.tokens, block.lengths), is_masked, draws, vocab, random)


def delete_words(block: TokenBlock, draws: RowDraws, vocab: NoiseVocab, share: float) -> TokenBlock:
    """Delete a share of the words."""
    words = words_of(block, vocab.starts_word[block.tokens])
    picks = draws.rounded(words.counts * share, _HOW_MANY_DELETED)
    keep = ~np.repeat(draws.chosen(picks, _DELETED, words.counts), words.lengths)
    return TokenBlock(block.tokens[keep], sums(keep, block.lengths))


def infill(
    block: TokenBlock,
    draws: RowDraws,
    vocab: NoiseVocab,
    share: float,
    span_mean: float,
    random: float,
) -> TokenBlock:
    """Replace spans of words with one mask each; a span of length 0 inserts a mask.

    The lengths of the spans of a row add up to its share of words, so the last span is cut. The
    spans do not overlap, unlike those of fairseq, which mask fewer words. A row has at most as many
    spans as masked words, so that it does not become longer.
    """
    words = words_of(block, vocab.starts_word[block.tokens])
    wanted = draws.rounded(words.counts * share, _HOW_MANY_INFILLED)
    spans, spans_of_row = _spans(draws, wanted, span_mean)
    kept = words.counts - sums(spans, spans_of_row)
    # a row is now spans and kept words in an order in which all arrangements are equally likely
    items = kept + spans_of_row
    is_span = draws.chosen(spans_of_row, _WHERE, items)
    size = np.ones(len(is_span), np.int64)
    size[is_span] = spans
    first_word = np.cumsum(size) - size
    word_starts = np.cumsum(words.lengths) - words.lengths
    word_lengths = np.append(words.lengths, 1)  # a span may stand behind the last word
    lengths = np.where(is_span, 1, word_lengths[first_word])
    starts = np.where(is_span, 0, np.append(word_starts, 0)[first_word])
    tokens = np.append(block.tokens, 0)[ranges(starts, lengths)]
    result = TokenBlock(tokens, sums(lengths, items))
    is_masked = np.zeros(len(tokens), bool)
    is_masked[(np.cumsum(lengths) - lengths)[is_span]] = True
    return _with_masks(result, is_masked, draws, vocab, random)


def rotate(block: TokenBlock, draws: RowDraws, share: float) -> TokenBlock:
    """Let a share of the rows begin with a random one of their tokens; those before it follow."""
    offsets = (draws.of_rows(_OFFSET) * block.lengths).astype(np.int64)
    offsets[draws.of_rows(_IS_ROTATED) >= share] = 0
    lengths = np.repeat(block.lengths, block.lengths)
    starts = np.repeat(np.cumsum(block.lengths) - block.lengths, block.lengths)
    at = (places(block.lengths) + np.repeat(offsets, block.lengths)) % np.maximum(lengths, 1)
    return TokenBlock(block.tokens[starts + at], block.lengths)


def _spans(
    draws: RowDraws, wanted: NDArray[np.int64], mean: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw lengths of spans that add up to `wanted` (B,).

    Returns:
        Their lengths (spans,), and the number (B,) of spans of each row.
    """
    counts = np.where(wanted > 0, 2 * wanted + _MORE_DRAWS, 0)
    drawn = np.searchsorted(_poisson(mean), draws.of_items(_SPANS, counts), side="right")
    before = sums_before(drawn, counts)
    limit = np.repeat(wanted, counts)
    is_used = before < limit
    lengths = np.minimum(drawn, limit - before)[is_used].astype(np.int64)
    used = sums(is_used, counts)
    # as many insertions as there are words in longer spans than one
    is_insertion = lengths == 0
    allowed = sums(lengths, used) - sums(~is_insertion, used)
    keep = ~is_insertion | (sums_before(is_insertion, used) < np.repeat(allowed, used))
    return lengths[keep], sums(keep, used)


def _poisson(mean: float) -> NDArray[np.float64]:
    """Return the probabilities that a Poisson variable is at most 0, 1, 2 and so on."""
    most = int(mean + 12 * np.sqrt(mean) + 12)
    logs = np.arange(most) * np.log(mean) - np.cumsum(np.log(np.maximum(np.arange(most), 1)))
    return np.cumsum(np.exp(logs - mean))


def _with_masks(
    block: TokenBlock,
    is_masked: NDArray[np.bool_],
    draws: RowDraws,
    vocab: NoiseVocab,
    random: float,
) -> TokenBlock:
    """Return rows with masks at some places (I,), a share of which are random tokens."""
    tokens = np.where(is_masked, vocab.mask, block.tokens)
    if random:
        is_random = is_masked & (draws.of_items(_IS_RANDOM, block.lengths) < random)
        drawn = draws.below(len(vocab.ordinary), _RANDOM, block.lengths)
        tokens[is_random] = vocab.ordinary[drawn[is_random]]
    return TokenBlock(tokens, block.lengths)
