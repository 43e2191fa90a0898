"""The interface to the examples of a split, wherever they are stored.

Shapes: N examples; `sides` is 2 for source and target, or 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

SOURCE, TARGET = 0, 1
"""Columns of `Source.lengths` if there are two sides."""

_CHUNK = 1 << 16  # examples gathered at a time
_MOST_SAMPLED = 100_000


class TokenBlock(NamedTuple):
    """Sentences of one side: concatenated `tokens` (sum of lengths,) and `lengths` (N,)."""

    tokens: NDArray[np.integer]
    lengths: NDArray[np.integer]

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> TokenBlock:
        """Build a block from a list of sentences."""
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        tokens = np.fromiter(chain.from_iterable(sentences), np.int64, int(lengths.sum()))
        return cls(tokens, lengths)


class Dataset(Protocol):
    """The examples of a split that a task uses, numbered from 0.

    Attributes:
        lengths: (N, sides) number of tokens of each side of each example.
        num_left_out: number of examples of the split that are excluded.
    """

    lengths: NDArray[np.integer]
    num_left_out: int

    def __len__(self) -> int:
        """N."""


Key = tuple[int, int]
"""Seed and epoch."""


@runtime_checkable
class ChangingDataset(Dataset, Protocol):
    """Examples that differ from epoch to epoch."""

    def in_epoch(self, key: Key, stage: int = 0) -> Dataset:
        """Return the examples as they are in an epoch.

        Args:
            key: seed and epoch.
            stage: number of the stage of a mix, from 0.
        """


@runtime_checkable
class InParts(ChangingDataset, Protocol):
    """Examples of several corpora, whose shares and changes may depend on the epoch."""

    parts: Any
    """The corpora, `ds_seq.data.corpora.Part` each."""
    first: NDArray[np.integer]
    """(parts + 1,) number of the first example of each corpus, and N."""
    has_changing_lengths: bool
    """Whether lengths differ from epoch to epoch."""

    def bounds(self, key: Key, indices: NDArray[np.integer], stage: int = 0) -> NDArray[np.integer]:
        """Return upper bounds of the lengths (B, sides) of some examples; see `in_epoch`."""

    def part_of(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number (B,) of the corpus of each example."""

    def fingerprint_of(self, number: int) -> str:
        """Return the fingerprint of the content of a corpus, as it is used here."""


class FixedLengths:
    """What is common to an `InParts` whose examples keep their lengths from epoch to epoch.

    Where a mix has several copies of an example in an epoch, copy n of example i is number
    `n * N + i`.
    """

    lengths: NDArray[np.integer]
    first: NDArray[np.integer]
    has_changing_lengths = False

    def __len__(self) -> int:
        return len(self.lengths)

    def bounds(self, key: Key, indices: NDArray[np.integer], stage: int = 0) -> NDArray[np.integer]:
        """Return the lengths (B, sides) of some examples, or upper bounds of them."""
        return self.lengths[indices % len(self)]

    def part_of(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number (B,) of the corpus of each example."""
        return np.searchsorted(self.first, indices % len(self), side="right") - 1


class Source(Protocol):
    """Examples of token ids, numbered from 0. They do not change while they are open."""

    @property
    def lengths(self) -> NDArray[np.integer]:
        """(N, sides) number of tokens of each side of each example, end symbol included."""

    @property
    def vocab_hash(self) -> str:
        """Fingerprint of the vocabulary that the ids belong to."""

    @property
    def vocab_size(self) -> int:
        """Number of ids in that vocabulary."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the examples, which ties derived files to their source."""

    def __len__(self) -> int:
        """N."""

    def gather(self, indices: NDArray[np.integer], /) -> tuple[TokenBlock, ...]:
        """Copy at least one example.

        Args:
            indices: numbers of the examples, in any order and possibly repeated.

        Returns:
            One block per side, with its sentences in the order of `indices`.
        """


def first_tokens(source: Source, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the first source token of some examples, (N,); with tags, that of the language."""
    first = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _CHUNK):
        block = source.gather(rows[start : start + _CHUNK])[SOURCE]
        ends = np.cumsum(block.lengths)
        first[start : start + _CHUNK] = block.tokens[ends - block.lengths]
    return first


def untagged_rows(
    source: Source, tags: Collection[int], rows: range | None = None
) -> tuple[NDArray[np.int64], int]:
    """Return the examples whose source does not begin with a tag, among an even sample of all.

    Args:
        source: the examples.
        tags: ids of the tags.
        rows: consecutive examples to look at; None: all.

    Returns:
        Numbers of the examples without a tag, ascending, and the size of the sample.
    """
    rows = range(len(source)) if rows is None else rows
    sample = np.unique(np.linspace(rows[0], rows[-1], min(len(rows), _MOST_SAMPLED), dtype=int))
    untagged = ~np.isin(first_tokens(source, sample), list(tags))
    return sample[untagged], len(sample)
