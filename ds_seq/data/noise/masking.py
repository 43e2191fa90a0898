"""Masked tokens for a masked language model.

Devlin et al., 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", section 3.1, https://arxiv.org/abs/1810.04805. The tokens to predict are drawn anew
in each epoch, as in RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692).

Shapes: B rows, I tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.noise.rows import RowDraws
from ds_seq.data.noise.text import NoiseVocab, words_of
from ds_seq.data.source import TokenBlock

_HOW_MANY, _WHICH, _KIND, _RANDOM = range(4)


class Masked(NamedTuple):
    """Rows of which some tokens are to be predicted."""

    block: TokenBlock
    """The rows as the model sees them."""
    is_predicted: NDArray[np.bool_]
    """(I,) which tokens are to be predicted."""


class Masking(NamedTuple):
    """How much of a text is predicted, and what stands in its place."""

    share: float
    """Share of the words that are predicted; of each row that has a word at least one."""
    random: float
    """Share of the predicted tokens that become a random token."""
    keep: float
    """Share of the predicted tokens that stay; all others become a mask."""

    def __call__(self, block: TokenBlock, draws: RowDraws, vocab: NoiseVocab) -> Masked:
        """Return rows without the symbols around them with masks."""
        words = words_of(block, vocab.starts_word[block.tokens])
        picks = np.maximum(draws.rounded(words.counts * self.share, _HOW_MANY), 1)
        picks = np.minimum(picks, words.counts)
        is_predicted = np.repeat(draws.chosen(picks, _WHICH, words.counts), words.lengths)
        kind = draws.of_items(_KIND, block.lengths)
        drawn = vocab.ordinary[draws.below(len(vocab.ordinary), _RANDOM, block.lengths)]
        tokens = block.tokens.copy()
        is_random = is_predicted & (kind < self.random)
        is_mask = is_predicted & (kind >= self.random + self.keep)
        tokens[is_random], tokens[is_mask] = drawn[is_random], vocab.mask
        return Masked(TokenBlock(tokens, block.lengths), is_predicted)
