"""Which sentences form which batch, on which rank, in which order.

The whole order is a function of (seed, epoch); no rank talks to another one. It comes about so:

1. Pairs are sorted by length; pairs of exactly the same lengths lie in random order.
2. The sorted row is cut into batches of at most `max_tokens` tokens, padding counted.
3. Cells of `CELL` neighboring batches are put in random order. That gives one sequence of
   batches, the same for every number of ranks.
4. One update takes the next `world_size * accumulate` batches of the sequence. In an update,
   rank r takes number `m * world_size + r` in its micro step m, so that neighbors, which cost
   about the same, are worked on at the same time.

An epoch takes all pairs, or those that a function of the epoch names: some left out, some several
times. Then steps 1 and 2 are of these.

Hence an update holds the same sentences for every (world_size, accumulate) of equal product, and
"the first n batches of the sequence are done" describes a place in an epoch for any layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.errors import UserError

CELL = 4  # with 1 the slowest of 8 ranks takes 4.5% longer than the mean, with 4 it takes 3.2%
_RECENT = 8  # epochs whose cuts are remembered
_NO_PAIRS: NDArray[np.int64] = np.zeros(0, np.int64)


Rows = Callable[[int], NDArray[np.integer]]
"""(epoch) -> (M,) numbers of the pairs of that epoch, at least one; repeated ones come repeatedly.
The same for the same epoch, and on every rank."""


class _Cut(NamedTuple):
    """The pairs of an epoch and where their sorted row is cut."""

    rows: NDArray[np.int64] | None  # (M,) their numbers; None: all pairs
    key: NDArray[np.int64]  # (M,) by which they are sorted
    cuts: NDArray[np.int64]  # where batches start, with M as the last entry


class TokenBatchSampler:
    """Deals batches of bounded padded size to ranks.

    Every pair comes exactly once an epoch, unless `rows` says otherwise. Every rank gets the same
    number of batches, a multiple of `accumulate`; at the end of an epoch some of them may be
    empty (length 0), because the forward of a Mixture-of-Experts layer is a collective in which
    every rank must take part.

    Args:
        lengths: (N, sides) lengths of the sentences of each pair, end symbols included.
        max_tokens: bound of sentences x longest sentence of any side of a batch. Where batches are
            padded to multiples of some number, give lengths rounded up to it.
        max_sentences: bound of the sentences of a batch; None = no bound.
        seed: of the order; None gives the order of lengths, for validation.
        rank: which batches to hand out.
        world_size: number of ranks.
        accumulate: batches of one rank that make one update.
        rows: the pairs of each epoch, for mixtures and stages; None = all of them, in every epoch.

    Raises:
        UserError: there are no pairs, or one is longer than `max_tokens`.
    """

    def __init__(  # noqa: PLR0913  (what decides the order, and this rank's place in it)
        self,
        lengths: NDArray[np.integer],
        max_tokens: int,
        max_sentences: int | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        accumulate: int,
        rows: Rows | None = None,
    ) -> None:
        assert 0 <= rank < world_size and accumulate > 0 and lengths.ndim == 2
        self._check(lengths, max_tokens)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.accumulate = accumulate
        self._limits = max_tokens, max_sentences
        self._longest = lengths.max(axis=1)
        self._key = _sort_key(lengths)
        self._rows = rows
        self._recent: dict[int, _Cut] = {}
        # Only equal lengths ever change places, so that the cuts are the same in every epoch.
        self._all = self._cut(None) if rows is None else None

    def _cut(self, rows: NDArray[np.int64] | None) -> _Cut:
        key = self._key if rows is None else self._key[rows]
        longest = self._longest if rows is None else self._longest[rows]
        order = np.argsort(key, kind="stable")
        return _Cut(rows, key, _cut_batches(longest[order], *self._limits))

    def _cut_of(self, epoch: int) -> _Cut:
        if self._all is not None:
            return self._all
        cut = self._recent.get(epoch)
        if cut is None:
            assert self._rows is not None
            cut = self._cut(np.asarray(self._rows(epoch), np.int64))
            self._recent[epoch] = cut
            # a stream asks about the epoch it is in and, in its thread, about those made ahead
            for old in sorted(self._recent)[:-_RECENT]:
                self._recent.pop(old, None)
        return cut

    @staticmethod
    def _check(lengths: NDArray[np.integer], max_tokens: int) -> None:
        if len(lengths) == 0:
            raise UserError(
                "no sentence pair to make batches of; check data.max_source_length and "
                "data.max_target_length"
            )
        longest = lengths.max(axis=1)
        worst = int(longest.argmax())
        if longest[worst] > max_tokens:
            raise UserError(
                f"pair {worst} has {int(longest[worst]):,} tokens on one side, which is more than "
                f"train.max_tokens={max_tokens:,} allows for a whole batch; raise "
                "train.max_tokens, or lower data.max_source_length and data.max_target_length"
            )

    @property
    def group(self) -> int:
        """Batches of one update over all ranks."""
        return self._world_size * self.accumulate

    def num_batches(self, epoch: int = 1) -> int:
        """Batches of an epoch over all ranks, empty ones not counted."""
        return len(self._cut_of(epoch).cuts) - 1

    def num_updates(self, done: int = 0, epoch: int = 1) -> int:
        """Updates of an epoch from which the first `done` batches (of all ranks) are missing."""
        return -(-(self.num_batches(epoch) - done) // self.group)

    def epoch(self, epoch: int, done: int = 0) -> list[NDArray[np.int64]]:
        """Return this rank's batches of an epoch, as arrays of pair numbers.

        Args:
            epoch: any number >= 0; training counts from 1.
            done: leave out the first `done` batches of the sequence over all ranks.
        """
        rows, key, cuts = self._cut_of(epoch)
        num_batches = len(cuts) - 1
        if self._seed is not None:
            random = np.random.default_rng([self._seed, epoch])
            mixed = random.permutation(len(key))
            order = mixed[np.argsort(key[mixed], kind="stable")]
            sequence = _shuffled_cells(num_batches, random)
        else:
            order = np.argsort(key, kind="stable")
            sequence = np.arange(num_batches)
        if rows is not None:
            order = rows[order]
        end = done + self.num_updates(done, epoch) * self.group
        mine = range(done + self._rank, end, self._world_size)
        return [
            order[cuts[sequence[place]] : cuts[sequence[place] + 1]]
            if place < len(sequence)
            else _NO_PAIRS
            for place in mine
        ]


def _sort_key(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return one number (N,) a pair: first the longest side, then the difference of the first and last.

    The longer side decides the size of a batch, so batches come out full. The difference rises
    and falls in turn (like the path of a plough), so that neighbors across a change of the
    longer side are alike as well. On 315,000 English-German pairs of mixed text at 4,096 tokens
    this pads 1.0% and makes 2,029 batches; sorting by source, then target pads 2.0% in 2,087.
    """
    sides = lengths.astype(np.int64)
    longest = sides.max(axis=1)
    gap = sides[:, 0] - sides[:, -1]
    difference = np.where(longest % 2 == 0, gap, -gap)
    bound = int(longest.max())
    return longest * (2 * bound + 1) + difference + bound


def _cut_batches(
    longest: NDArray[np.integer], max_tokens: int, max_sentences: int | None
) -> NDArray[np.int64]:
    """Return where batches start in a rising row of lengths (N,), with N as the last entry."""
    cuts = [0]
    cap = len(longest) if max_sentences is None else max_sentences
    while cuts[-1] < len(longest):
        start = cuts[-1]
        window = longest[start : start + min(cap, max_tokens // int(longest[start]))]
        padded = window.astype(np.int64) * np.arange(1, len(window) + 1)
        cuts.append(start + int(np.searchsorted(padded, max_tokens, side="right")))
    return np.asarray(cuts, np.int64)


def _shuffled_cells(num_batches: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the batch numbers (num_batches,) with cells of `CELL` neighbors in random order.

    The batches left over when `CELL` does not divide their number come last. They are taken from
    a random place of the row, or else the epoch would always end with the longest sentences.
    """
    cells, rest = divmod(num_batches, CELL)
    first = int(random.integers(cells + 1)) * CELL
    numbers = np.arange(num_batches)
    whole = np.delete(numbers, slice(first, first + rest)).reshape(cells, CELL)
    return np.concatenate([random.permutation(whole).reshape(-1), numbers[first : first + rest]])
