"""Random permutations whose entries are computed one by one, without a list of all numbers.

A walk through a corpus of hundreds of millions of pairs needs a few of them at a time, on every
rank and again after a resume. A Feistel network with random round functions permutes the numbers
below a power of two; numbers that leave [0, size) are permuted again until they are inside (cycle
walking), so the result is a permutation of [0, size).

Black and Rogaway, 2002, "Ciphers with Arbitrary Finite Domains".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 3  # each changes both halves
_CHUNK = 1 << 16  # numbers at a time, so that they stay in the cache
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; the golden ratio in 64 bits
_SHIFT = np.uint64(29)


class Permutation:
    """The permutation of [0, size) that belongs to a key.

    Args:
        size: number of numbers, at least 1.
        key: integers >= 0, such as (seed, corpus, pass).
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        assert size > 0
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low = np.uint64((1 << (bits // 2)) - 1)
        self._high = np.uint64((1 << (bits - bits // 2)) - 1)
        words = np.random.SeedSequence(list(key)).generate_state(4 * _ROUNDS, np.uint64)
        self._keys = words.reshape(_ROUNDS, 2, 2)

    def __call__(self, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the entries (N,) at some places (N,) in [0, size)."""
        result = np.empty(len(numbers), np.int64)
        for start in range(0, len(numbers), _CHUNK):
            part = slice(start, start + _CHUNK)
            result[part] = self._inside(numbers[part].astype(np.uint64))
        return result

    def fill(self, out: NDArray[np.integer], first: int) -> None:
        """Write the entries from place `first` on to `out` (N,)."""
        for start in range(0, len(out), _CHUNK):
            part = out[start : start + _CHUNK]
            numbers = np.arange(first + start, first + start + len(part), dtype=np.uint64)
            part[:] = self._inside(numbers)

    def _inside(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Permute numbers until they are in [0, size)."""
        permuted = self._permuted(numbers)
        outside = np.flatnonzero(permuted >= self.size)
        while len(outside):
            again = self._permuted(permuted[outside])
            permuted[outside] = again
            outside = outside[again >= self.size]
        return permuted

    def _permuted(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low, high = numbers & self._low, numbers >> self._low_bits
        for first, second in self._keys:
            low ^= _mixed(high, first) & self._low
            high ^= _mixed(low, second) & self._high
        return (high << self._low_bits) | low


def _mixed(numbers: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each number; the low bits depend on all bits of the number."""
    mixed = (numbers + key[0]) * _FACTOR
    mixed ^= mixed >> _SHIFT
    mixed *= key[1] | np.uint64(1)
    return mixed >> _SHIFT
