"""What the rest of ds_seq may ask of the examples of a split, wherever they are kept.

Shapes: N examples; sides are source and target, or one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

SOURCE, TARGET = 0, 1
"""Columns of `Source.lengths` where there are two sides."""


class TokenBlock(NamedTuple):
    """Sentences of one side: `tokens` (sum of lengths,) back to back and `lengths` (N,)."""

    tokens: NDArray[np.integer]
    lengths: NDArray[np.integer]

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> TokenBlock:
        """Return the block of a list of sentences."""
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        tokens = np.fromiter(chain.from_iterable(sentences), np.int64, int(lengths.sum()))
        return cls(tokens, lengths)


class Dataset(Protocol):
    """The examples of a split that a task learns from, numbered from 0.

    Attributes:
        lengths: (N, sides) tokens of each side of each example.
        num_left_out: examples of the split that are not among them.
    """

    lengths: NDArray[np.integer]
    num_left_out: int

    def __len__(self) -> int:
        """N."""


class Source(Protocol):
    """Examples of token ids, numbered from 0. Nothing changes them while they are open."""

    @property
    def lengths(self) -> NDArray[np.integer]:
        """(N, sides) tokens of each side of each example, end symbol included."""

    @property
    def vocab_hash(self) -> str:
        """Fingerprint of the vocabulary that the ids belong to."""

    @property
    def vocab_size(self) -> int:
        """Number of ids in that vocabulary."""

    @property
    def fingerprint(self) -> str:
        """Differs between sources of different examples; what is made from one belongs to it."""

    def __len__(self) -> int:
        """N."""

    def gather(self, indices: NDArray[np.integer], /) -> tuple[TokenBlock, ...]:
        """Copy some examples, at least one.

        Args:
            indices: their numbers, in any order, repeated or not.

        Returns:
            A block for each side, its sentences in the order of `indices`.
        """
