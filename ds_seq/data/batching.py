"""Form batches of sentences and assign them to ranks.

The whole order is a function of (seed, epoch), computed without communication between ranks:

1. Pairs are sorted by length; pairs of exactly the same lengths are in random order.
2. The sorted sequence is cut into batches of at most `max_tokens` tokens, padding included.
3. Cells of `CELL` neighboring batches are put in random order. The result is one sequence of
   batches, the same for any number of ranks.
4. Each update takes the next `group` batches of the sequence, normally `world_size * accumulate`.
   In micro step m of an update, rank r takes number `m * world_size + r`, so that neighbors, which
   have about the same cost, are processed at the same time.

An epoch contains all pairs, or those that a function of the epoch selects, possibly repeated. In
the latter case, the function divides them into sections, one after the other, so that copies of a
pair are far apart; steps 1 to 3 apply to each section, and batches that fill no cell come last.

As a result, an update contains the same sentences for every (world_size, accumulate) with the same
product, or for any number of ranks if `group` is given, and "the first n batches of the sequence
are done" is a position in an epoch for any layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, partial
from itertools import pairwise
from threading import RLock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.cuts import (
    KeyOf,
    Limits,
    SortKeys,
    counted,
    cut_batches,
    number_type,
    sorted_by,
    sortish,
)
from ds_seq.data.node_share import NodeShare
from ds_seq.errors import UserError

CELL = 4  # the slowest of 8 ranks takes 3.2% longer than the mean (with cells of 1: 4.5%)
GROUPED = 50
_LEAST_BATCHES = 50  # in a section; with fewer, the lengths in a batch differ noticeably
_NUM_MEASURED = 100_000  # pairs from which the number of batches is estimated
_NO_PAIRS: NDArray[np.int64] = np.zeros(0, np.int64)


class Selected(NamedTuple):
    """The pairs of an epoch, in sections."""

    pairs: NDArray[np.integer]
    """(M,) their numbers, at least one, possibly with repetitions."""
    sections: NDArray[np.int64]
    """(S + 1,) start of each section, with M as the last entry."""

    @classmethod
    def whole(cls, pairs: NDArray[np.integer]) -> Selected:
        """Return pairs in one section."""
        return cls(pairs, np.asarray([0, len(pairs)]))


Rows = Callable[[int], Selected]
"""(epoch) -> the pairs of that epoch. Must return the same for the same epoch, on every rank, in an
array that the caller may change."""


Bounds = Callable[[int, NDArray[np.integer]], NDArray[np.integer]]
"""(epoch, (M,) numbers of pairs) -> (M, sides) upper bounds of their lengths in that epoch."""


class Order(NamedTuple):
    """An epoch over all ranks: batch n has `pairs[cuts[m]:cuts[m + 1]]` with m = `sequence[n]`."""

    pairs: NDArray[np.integer]
    """(M,) numbers of the pairs, by length in each section."""
    cuts: NDArray[np.int64]
    """(num_batches + 1,) start of each batch."""
    sequence: NDArray[np.int64]
    """(num_batches,) number of each batch, in the order of training."""


class _Keyed(NamedTuple):
    """What is sorted in an epoch."""

    items: NDArray[np.integer]  # (M,) pairs, or places among `pairs`
    sections: NDArray[np.int64]
    keys: SortKeys
    key_of: KeyOf
    pairs: NDArray[np.integer] | None = None


class TokenBatchSampler:
    """Assign batches of bounded padded size to ranks.

    Each pair occurs exactly once per epoch, unless `rows` is given. Every rank gets the same number
    of batches, a multiple of `accumulate`; at the end of an epoch some of them may be empty
    (length 0), because the forward of a Mixture-of-Experts layer is a collective in which every
    rank must take part.

    Args:
        lengths: (N, sides) lengths of the sentences of each pair, end symbols included.
        max_tokens: upper bound on sentences x longest sentence of any side of a batch. If batches
            are padded to multiples of some number, give lengths rounded up to it.
        max_sentences: maximum number of sentences per batch; None sets no limit.
        seed: seed of the order; None sorts by length, for validation.
        rank: rank whose batches are returned.
        world_size: number of ranks.
        accumulate: number of batches per rank and update.
        rows: selects the pairs of each epoch, for mixtures and stages; None uses all pairs.
        group: number of batches per update over all ranks, which need not be a multiple of
            `world_size`: then some batches are empty. None: `world_size * accumulate`.
        multiple: batches of more sentences are cut to a multiple of this.
        is_sortish: whether pairs are sorted in random groups of about `GROUPED` batches only.
        starts_with_largest: whether the largest batch of epoch 1 comes first.

    Raises:
        UserError: there are no pairs, or one is longer than `max_tokens`.
    """

    def __init__(  # noqa: PLR0913  (the inputs of the order, and the rank)
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
        group: int | None = None,
        multiple: int = 1,
        is_sortish: bool = False,
        starts_with_largest: bool = False,
    ) -> None:
        assert 0 <= rank < world_size and accumulate > 0 and lengths.ndim == 2
        self._check(lengths, max_tokens)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.accumulate = accumulate
        self.group = world_size * accumulate if group is None else group
        assert world_size * (accumulate - 1) < self.group <= world_size * accumulate
        self._limits = Limits(max_tokens, max_sentences, multiple)
        self._is_sortish = is_sortish and seed is not None
        self._starts_with_largest = starts_with_largest
        self._keys = cache(partial(SortKeys, lengths))  # ranks that share an order need none
        self._lengths = lengths
        self._rows = rows
        self._bounds: Bounds | None = None
        self._share: NodeShare | None = None
        self._label = "all"
        self._num_batches: dict[int, int] = {}  # by epoch
        self._made: dict[tuple[object, int], Order] = {}  # the last one of the run only
        self._lock = RLock()  # the thread of a stream makes batches, too

    def of_rank(self, rank: int) -> TokenBatchSampler:
        """Return the sampler of another rank of the same run."""
        assert 0 <= rank < self._world_size
        other = copy(self)
        other._rank = rank
        return other

    def shared(self, share: NodeShare) -> TokenBatchSampler:
        """Return a sampler that shares the order of epochs with the other ranks of its machine."""
        other = copy(self)
        other._share = share
        return other

    def with_rows(
        self, rows: Rows, bounds: Bounds | None = None, label: str = ""
    ) -> TokenBatchSampler:
        """Return a sampler of the same pairs and limits whose epochs are those of `rows`.

        Args:
            rows: selects the pairs of each epoch.
            bounds: lengths in an epoch, if they change; None: those of all epochs.
            label: name of `rows` for ranks that share their result; empty: they do not.
        """
        other = copy(self)
        other._rows, other._num_batches, other._bounds = rows, {}, bounds
        other._label, other._share = label, self._share if label else None
        return other

    def most_sections(self, num_pairs: int) -> int:
        """Return how many sections an epoch of so many pairs may have without more padding."""
        some = np.unique(np.linspace(0, len(self._lengths) - 1, _NUM_MEASURED).astype(np.int64))
        size = self._limits.max_tokens / float(self._lengths[some].max(axis=1).mean())
        if self._limits.max_sentences is not None:
            size = min(size, self._limits.max_sentences)
        return max(1, int(num_pairs / size) // _LEAST_BATCHES)

    def _keyed(self, epoch: int, wants_places: bool) -> _Keyed:
        """Return what is sorted in an epoch, in an array of its own."""
        if self._rows is None:
            ranks, size = self._keys().ranks, len(self._lengths)
            items = np.arange(size, dtype=number_type(size))
            return _Keyed(items, np.asarray([0, size]), self._keys(), lambda pairs: ranks[pairs])
        pairs, sections = self._rows(epoch)
        if self._bounds is None and not wants_places:
            ranks = self._keys().ranks
            return _Keyed(pairs, sections, self._keys(), lambda pairs: ranks[pairs])
        places = np.arange(len(pairs), dtype=number_type(len(pairs)))
        if self._bounds is not None:
            keys = SortKeys(self._bounds(epoch, pairs))
            return _Keyed(places, sections, keys, lambda places: keys.ranks[places], pairs)
        ranks = self._keys().ranks
        return _Keyed(places, sections, self._keys(), lambda places: ranks[pairs[places]], pairs)

    @staticmethod
    def _check(lengths: NDArray[np.integer], max_tokens: int) -> None:
        if len(lengths) == 0:
            raise UserError(
                "no sentence pair to make batches of; check data.max_source_length and "
                "data.max_target_length"
            )
        longest = [int(side.max()) for side in lengths.T]
        if max(longest) > max_tokens:
            worst = int(lengths[:, int(np.argmax(longest))].argmax())
            raise UserError(
                f"pair {worst} has {max(longest):,} tokens on one side, which is more than "
                f"train.max_tokens={max_tokens:,} allows for a whole batch; raise "
                "train.max_tokens, or lower data.max_source_length and data.max_target_length"
            )

    def num_batches(self, epoch: int = 1) -> int:
        """Return the number of batches of an epoch over all ranks, not counting empty ones."""
        # Without `rows`, only pairs of equal lengths are reordered, so the cuts stay the same.
        known = epoch if self._rows is not None or self._is_sortish else 0
        if known not in self._num_batches:
            self._num_batches[known] = len(self._ordered(epoch).sequence)
        return self._num_batches[known]

    def num_updates(self, done: int = 0, epoch: int = 1) -> int:
        """Return the number of updates of an epoch without its first `done` batches (all ranks)."""
        return -(-(self.num_batches(epoch) - done) // self.group)

    def epoch(self, epoch: int, done: int = 0) -> list[NDArray[np.int64]]:
        """Return this rank's batches of an epoch, as arrays of pair numbers.

        Args:
            epoch: number of the epoch, >= 0; training counts from 1.
            done: number of batches to skip at the start of the sequence over all ranks.
        """
        return list(self.batches(epoch, done))

    def batches(self, epoch: int, done: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yield what `epoch` returns, with no list of all batches in memory."""
        pairs, cuts, sequence = self._ordered(epoch)
        for update in range(self.num_updates(done, epoch)):
            for micro_step in range(self.accumulate):
                place = micro_step * self._world_size + self._rank
                batch = done + update * self.group + place
                if place < self.group and batch < len(sequence):
                    number = sequence[batch]
                    yield pairs[cuts[number] : cuts[number + 1]].astype(np.int64)
                else:
                    yield _NO_PAIRS

    def _ordered(self, epoch: int) -> Order:
        """Return the order of an epoch; the last one is kept."""
        key = self._label or self._rows, epoch
        with self._lock:
            if self._share is not None:
                return Order(*self._share.get(f"{self._label}-{epoch}", lambda: self.order(epoch)))
            if key not in self._made:
                self._made.clear()  # two would take too much memory
                self._made[key] = self.order(epoch)
            return self._made[key]

    def order(self, epoch: int, wants_places: bool = False) -> Order:
        """Return the order of an epoch over all ranks.

        Args:
            epoch: number of the epoch.
            wants_places: whether to return, instead of pairs, their places in what `rows` returns.
        """
        items, sections, keys, key_of, pairs = self._keyed(epoch, wants_places)
        random = np.random.default_rng([self._seed or 0, epoch])
        in_groups = np.random.default_rng([self._seed or 0, epoch, GROUPED])
        ordered, cuts = np.empty_like(items), [np.zeros(1, np.int64)]
        cells, rests = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for start, stop in pairwise(sections.tolist()):
            section = items[start:stop]
            if self._is_sortish:
                in_groups.shuffle(section)
                ordered[start:stop], ends = sortish(keys, key_of, section, self._limits, GROUPED)
            if self._seed is not None:
                random.shuffle(section)
            if not self._is_sortish:
                counts = counted(section, key_of)
                sorted_by(key_of, counts, section, ordered[start:stop])
                ends = cut_batches(*keys.longest(counts), self._limits)
            first, size = sum(map(len, cuts)) - 1, len(ends) - 1
            cuts.append(start + ends[1:])
            whole, rest = _in_cells(size, None if self._seed is None else random)
            cells.append(first + whole)
            rests.append(first + rest)
        all_cuts, sequence = np.concatenate(cuts), np.concatenate([*cells, *rests])
        if self._starts_with_largest and epoch == 1 and self._seed is not None:
            last = keys.longest_of(key_of(ordered[all_cuts[1:] - 1]))
            at = int(np.argmax(np.diff(all_cuts)[sequence] * last[sequence]))
            sequence[: at + 1] = np.roll(sequence[: at + 1], 1)
        if pairs is not None and not wants_places:
            ordered = pairs[ordered]
        return Order(ordered, all_cuts, sequence)


def _in_cells(
    num_batches: int, random: np.random.Generator | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return batch numbers below `num_batches` in cells of `CELL` neighbors, and the rest.

    The cells are in random order; without a generator, all numbers are in one. If `CELL` does not
    divide the number of batches, the remainder is taken from a random place in the sequence;
    otherwise the epoch would always end with the longest sentences.
    """
    numbers = np.arange(num_batches)
    if random is None:
        return numbers, numbers[:0]
    cells, rest = divmod(num_batches, CELL)
    first = int(random.integers(cells + 1)) * CELL
    whole = np.delete(numbers, slice(first, first + rest)).reshape(cells, CELL)
    return random.permutation(whole).reshape(-1), numbers[first : first + rest]
