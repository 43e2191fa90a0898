"""Random numbers that are functions of a key and a number, for many numbers at once.

What training draws for a pair must not depend on the rank, the batch or what was drawn before. So
it is a hash of (seed, what for, epoch, number of the pair) and not the next number of a generator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def hashed(numbers: NDArray[np.integer], *key: int) -> NDArray[np.uint64]:
    """Return 64 random bits (N,) for each number and a key.

    The mixing function is that of SplitMix64 (Steele, Lea and Flood, 2014, "Fast Splittable
    Pseudorandom Number Generators").

    Args:
        numbers: (N,) integers >= 0.
        key: integers >= 0, such as seed and epoch.
    """
    start = np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0]
    return _mixed((numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN + start)


def hashed_places(
    numbers: NDArray[np.integer], counts: NDArray[np.integer], *key: int
) -> NDArray[np.uint64]:
    """Return 64 random bits for each place of each number and a key; see `hashed`.

    Args:
        numbers: (N,) integers >= 0.
        counts: (N,) how many places each number has.
        key: integers >= 0, such as seed and epoch.

    Returns:
        The bits (sum of counts,), those of one number after those of another.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places = np.arange(total) - np.repeat(ends - counts, counts)
    starts = np.repeat(hashed(numbers, *key), counts)
    return _mixed((places.astype(np.uint64) + np.uint64(1)) * _GOLDEN + starts)


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return np.asarray(bits ^ (bits >> np.uint64(31)), np.uint64)


def uniform(numbers: NDArray[np.integer], *key: int) -> NDArray[np.float64]:
    """Return a random number (N,) in [0, 1) for each number and a key; see `hashed`."""
    return as_uniform(hashed(numbers, *key))


def as_uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return random bits as numbers in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
