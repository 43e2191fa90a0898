"""Sort pairs by length and cut the sorted sequence into batches, with little memory.

An epoch of 50 million pairs is sorted on every rank, so numbers are as narrow as they can be, and
nothing is sorted that has few different values: pairs are distributed by counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 20
"""Pairs at a time."""
_LONGEST_COUNTED = 4096  # tokens; a table of all pairs of lengths then takes 134 MB


KeyOf = Callable[[NDArray[np.integer]], NDArray[np.unsignedinteger]]
"""(n,) pairs, or places of pairs -> (n,) their sort keys; called with about `CHUNK` at a time."""


class Limits(NamedTuple):
    """Bounds of a batch."""

    max_tokens: int
    """Sentences times the longest sentence of any side."""
    max_sentences: int | None = None
    multiple: int = 1
    """Larger batches are cut to a multiple of this many sentences."""


def number_type(count: int) -> type[np.unsignedinteger]:
    """Return the narrowest type of the numbers below `count`, at least 32 bits."""
    return np.uint32 if count <= 1 << 32 else np.uint64


class SortKeys:
    """Sort keys of pairs: first by the longest side, then by the difference of sides.

    The longest side determines the size of a batch, so batches are full. The difference rises and
    falls alternately (boustrophedon), so that neighbors across a change of the longest side are
    also similar. On 315,000 English-German pairs of mixed text at 4,096 tokens this gives 1.0%
    padding and 2,029 batches; sorting by source, then target gives 2.0% and 2,087.

    With L the longest side, the difference is between -L and L, so L * L + L + difference counts
    the possible pairs of lengths in this order. Those that occur are numbered without gaps.

    Args:
        lengths: (N, sides) lengths of the sentences of each pair.

    Attributes:
        ranks: (N,) key of each pair, normally in 16 bits.
    """

    def __init__(self, lengths: NDArray[np.integer]) -> None:
        bound = max(int(side.max()) for side in lengths.T)
        parts = range(0, len(lengths), CHUNK)
        if bound > _LONGEST_COUNTED:
            present, ranks = np.unique(_codes(lengths), return_inverse=True)
            self._longest = np.sqrt(present).astype(np.int64)
            self.ranks: NDArray[np.unsignedinteger] = ranks.astype(np.uint32)
            return
        counts = np.zeros((bound + 1) ** 2, np.int64)
        for start in parts:
            counts += np.bincount(_codes(lengths[start : start + CHUNK]), minlength=len(counts))
        present = np.flatnonzero(counts)
        self._longest = np.sqrt(present).astype(np.int64)  # exact: present is below 2 ** 52
        rank_of = np.zeros(len(counts), np.uint16 if len(present) <= 1 << 16 else np.uint32)
        rank_of[present] = np.arange(len(present))
        self.ranks = np.empty(len(lengths), rank_of.dtype)
        for start in parts:
            part = slice(start, start + CHUNK)
            self.ranks[part] = rank_of[_codes(lengths[part])]

    def longest(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the different lengths of the longest sides of some pairs, and how many have them.

        Args:
            counts: number of pairs of each key; see `counted`.
        """
        values, first = np.unique(self._longest[: len(counts)], return_index=True)
        sums = np.add.reduceat(counts, first)
        return values[sums > 0], sums[sums > 0]

    def longest_of(self, ranks: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
        """Return the length (M,) of the longest side of each of some pairs."""
        return self._longest[ranks]


def sortish(
    keys: SortKeys,
    key_of: KeyOf,
    items: NDArray[np.integer],
    limits: Limits,
    num_batches: int,
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Sort pairs by length in groups, and cut each group into batches.

    Args:
        keys: what the sort keys mean.
        key_of: returns the sort keys of items.
        items: (M,) the pairs in random order.
        limits: bounds of a batch.
        num_batches: size of a group in batches, about.

    Returns:
        The items in groups (M,), and the start of each batch with M as the last entry.
    """
    batches = len(cut_batches(*keys.longest(counted(items, key_of)), limits)) - 1
    size = max(1, num_batches * len(items) // batches)
    ordered, cuts = [], []
    for start in range(0, len(items), size):
        group = items[start : start + size]
        ranks = key_of(group)
        ordered.append(group[np.argsort(ranks, kind="stable")])
        cuts.append(start + cut_batches(*keys.longest(counted(group, key_of)), limits)[:-1])
    return np.concatenate(ordered), np.append(np.concatenate(cuts), len(items))


def sorted_by(
    key_of: KeyOf,
    counts: NDArray[np.int64],
    items: NDArray[np.integer],
    out: NDArray[np.integer],
) -> None:
    """Write items (N,) to `out` (N,) in the order of their keys; equal keys stay in their order.

    Args:
        key_of: returns the sort keys of items.
        counts: how often each key occurs.
        items: (N,) the items.
        out: (N,) other memory than that of the items.
    """
    ends = np.cumsum(counts) - counts  # where the next item of each key goes
    for start in range(0, len(items), CHUNK):
        part = items[start : start + CHUNK]
        part_keys = key_of(part)
        order = np.argsort(part_keys, kind="stable")
        part_keys = part_keys[order]
        part_counts = np.bincount(part_keys, minlength=len(ends))
        first = np.cumsum(part_counts) - part_counts
        out[(ends - first)[part_keys] + np.arange(len(part))] = part[order]
        ends += part_counts


def _codes(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    sides = lengths.astype(np.int64)
    longest = sides.max(axis=1)
    gap = sides[:, 0] - sides[:, -1]
    return longest * longest + longest + np.where(longest % 2 == 0, gap, -gap)


def counted(items: NDArray[np.integer], key_of: KeyOf) -> NDArray[np.int64]:
    """Return how often each key from 0 to the largest occurs among items (N,), N >= 1."""
    counts = np.zeros(1, np.int64)
    for start in range(0, len(items), CHUNK):  # bincount would copy all keys to 64 bits
        more = np.bincount(key_of(items[start : start + CHUNK]), minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return counts


def cut_batches(
    longest: NDArray[np.int64], counts: NDArray[np.int64], limits: Limits
) -> NDArray[np.int64]:
    """Return the start of each batch in ascending lengths, with their number N as the last entry.

    Args:
        longest: different lengths, ascending.
        counts: number of pairs of each length.
        limits: bounds of a batch.
    """
    ends = np.cumsum(counts).tolist()
    total = ends[-1]
    cap = total if limits.max_sentences is None else limits.max_sentences
    fits = [min(cap, limits.max_tokens // length) for length in longest.tolist()]
    pieces: list[NDArray[np.int64]] = []
    start = at = 0
    while start < total:
        while ends[at] <= start:
            at += 1
        size = _rounded(fits[at], limits.multiple)
        if (whole := (ends[at] - start) // size) > 1:  # many batches of one length
            pieces.append(start + size * np.arange(whole))
            start += size * whole
            continue
        stop, last = start, at
        while last < len(ends) and start + fits[last] > stop:
            stop = min(start + fits[last], ends[last])
            last += 1
        pieces.append(np.asarray([start]))
        start += _rounded(stop - start, limits.multiple) if stop < total else stop - start
    return np.concatenate([*pieces, np.asarray([total])]).astype(np.int64)


def _rounded(size: int, multiple: int) -> int:
    return size if size < multiple else size // multiple * multiple
