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
the latter case, steps 1 and 2 apply to the selected pairs.

As a result, an update contains the same sentences for every (world_size, accumulate) with the same
product, or for any number of ranks if `group` is given, and "the first n batches of the sequence
are done" is a position in an epoch for any layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.cuts import Limits, SortKeys, cut_batches, number_type, sorted_by, sortish
from ds_seq.data.node_share import NodeShare
from ds_seq.errors import UserError

CELL = 4  # the slowest of 8 ranks takes 3.2% longer than the mean (with cells of 1: 4.5%)
GROUPED = 50
_RECENT = 8  # number of epochs whose cuts are cached
_NO_PAIRS: NDArray[np.int64] = np.zeros(0, np.int64)


Rows = Callable[[int], NDArray[np.integer]]
"""(epoch) -> (M,) numbers of the pairs of that epoch, at least one, possibly with repetitions.
Must return the same for the same epoch, on every rank."""


Bounds = Callable[[int, NDArray[np.integer]], NDArray[np.integer]]
"""(epoch, (M,) numbers of pairs) -> (M, sides) upper bounds of their lengths in that epoch."""


class _Cut(NamedTuple):
    """The pairs of an epoch, and the boundaries of the batches in sorted order."""

    rows: NDArray[np.integer] | None  # (M,) numbers of the pairs; None: all pairs
    key: NDArray[np.unsignedinteger]  # (M,) sort keys
    keys: SortKeys  # what the keys mean
    cuts: NDArray[np.int64]  # start of each batch, with M as the last entry
    places: NDArray[np.unsignedinteger] | None = None  # (M,) the order, if groups are sorted


class Order(NamedTuple):
    """An epoch over all ranks: batch n has `places[cuts[m]:cuts[m + 1]]` with m = `sequence[n]`."""

    places: NDArray[np.unsignedinteger]
    """(M,) places among the pairs of the epoch, by length."""
    cuts: NDArray[np.int64]
    """(num_batches + 1,) start of each batch."""
    sequence: NDArray[np.int64]
    """(num_batches,) number of each batch, in the order of training."""


class _Ordered(NamedTuple):
    """The pairs of an epoch, None for all, and their order."""

    rows: NDArray[np.integer] | None
    order: Order

    @property
    def cuts(self) -> NDArray[np.int64]:
        """Start of each batch."""
        return self.order.cuts


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
        self._rows = rows
        self._bounds: Bounds | None = None
        self._share: NodeShare | None = None
        self._label = "all"
        self._recent: dict[int, _Cut] = {}
        self._all: _Cut | None = None

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
        other._rows, other._recent, other._all, other._bounds = rows, {}, None, bounds
        other._label, other._share = label, self._share if label else None
        return other

    def _cut(self, rows: NDArray[np.integer] | None, epoch: int = 0) -> _Cut:
        keys = self._keys()
        if rows is not None and self._bounds is not None:
            keys = SortKeys(self._bounds(epoch, rows))
            key = keys.ranks
        else:
            key = keys.ranks if rows is None else keys.ranks[rows]
        if not self._is_sortish:
            cuts = cut_batches(*keys.longest(key), self._limits)
            return _Cut(rows, key, keys, cuts)
        places = np.arange(len(key), dtype=number_type(len(key)))
        np.random.default_rng([self._seed or 0, epoch, GROUPED]).shuffle(places)
        places, cuts = sortish(keys, key, places, self._limits, GROUPED)
        return _Cut(rows, key, keys, cuts, places)

    def _cut_of(self, epoch: int) -> _Cut:
        if self._rows is None and not self._is_sortish:
            # Only pairs of equal lengths are reordered, so the cuts are the same in every epoch.
            self._all = self._all or self._cut(None)
            return self._all
        cut = self._recent.get(epoch)
        if cut is None:
            rows = None if self._rows is None else np.asarray(self._rows(epoch))
            cut = self._cut(rows, epoch)
            self._recent[epoch] = cut
            # a stream queries its current epoch and, in its thread, the epochs prepared ahead
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
        cuts = self._cut_of(epoch).cuts if self._share is None else self._ordered(epoch).cuts
        return len(cuts) - 1

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
        rows, (order, cuts, sequence) = self._ordered(epoch)
        for update in range(self.num_updates(done, epoch)):
            for micro_step in range(self.accumulate):
                place = micro_step * self._world_size + self._rank
                batch = done + update * self.group + place
                if place < self.group and batch < len(sequence):
                    number = sequence[batch]
                    pairs = order[cuts[number] : cuts[number + 1]]
                    yield (pairs if rows is None else rows[pairs]).astype(np.int64)
                else:
                    yield _NO_PAIRS

    def _ordered(self, epoch: int) -> _Ordered:
        if self._share is None:
            return _Ordered(self._cut_of(epoch).rows, self.order(epoch))

        def make() -> list[NDArray]:
            rows, order = self._cut_of(epoch).rows, self.order(epoch)
            self._recent.pop(epoch, None)  # its keys are not needed any more
            return [_NO_PAIRS if rows is None else rows, *order]

        rows, *order = self._share.get(f"{self._label}-{epoch}", make)
        return _Ordered(rows if len(rows) else None, Order(*order))

    def order(self, epoch: int) -> Order:
        """Return the order of an epoch over all ranks."""
        _, key, keys, cuts, places = self._cut_of(epoch)
        num_batches = len(cuts) - 1
        numbers = np.arange(len(key), dtype=number_type(len(key)))
        if self._seed is None:
            return Order(sorted_by(key, numbers), cuts, np.arange(num_batches))
        random = np.random.default_rng([self._seed, epoch])
        random.shuffle(numbers)
        places = sorted_by(key, numbers) if places is None else places
        sequence = _shuffled_cells(num_batches, random)
        if self._starts_with_largest and epoch == 1:
            last = keys.longest_of(key[places[cuts[1:] - 1]])
            first = int(np.argmax(np.diff(cuts)[sequence] * last[sequence]))
            sequence[: first + 1] = np.roll(sequence[: first + 1], 1)
        return Order(places, cuts, sequence)


def _shuffled_cells(num_batches: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the batch numbers (num_batches,) with cells of `CELL` neighbors in random order.

    If `CELL` does not divide the number of batches, the remainder comes last. It is taken from a
    random place in the sequence; otherwise the epoch would always end with the longest sentences.
    """
    cells, rest = divmod(num_batches, CELL)
    first = int(random.integers(cells + 1)) * CELL
    numbers = np.arange(num_batches)
    whole = np.delete(numbers, slice(first, first + rest)).reshape(cells, CELL)
    return np.concatenate([random.permutation(whole).reshape(-1), numbers[first : first + rest]])
