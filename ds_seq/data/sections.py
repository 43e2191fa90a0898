"""Deal the pairs of an epoch to sections, so that copies of a pair are far apart.

Batches have pairs of about the same length, and copies of a pair have exactly the same. In an epoch
sorted as a whole they would meet in a batch, or in neighboring ones. So an epoch in which a pair
occurs k times has k sections, one after the other, each with the same share of every corpus, and
batches are made within a section. The copies of a pair are dealt to different sections, like cards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.batching import Selected
from ds_seq.data.cuts import number_type


def most_copies(pairs: NDArray[np.unsignedinteger], bound: int) -> int:
    """Return how often the most frequent pair occurs; sorts the pairs if one may occur twice.

    Args:
        pairs: (M,) numbers of pairs.
        bound: number of copies that no pair exceeds.
    """
    if bound <= 1 or len(pairs) == 0:
        return min(bound, 1)
    pairs.sort()
    few, many = 1, min(bound, len(pairs))
    while few < many:  # equal pairs are neighbors, so k copies are k - 1 places apart
        copies = (few + many + 1) // 2
        if np.any(pairs[copies - 1 :] == pairs[: len(pairs) - copies + 1]):
            few = copies
        else:
            many = copies - 1
    return few


def with_copies(pairs: NDArray[np.unsignedinteger], end: int) -> NDArray[np.unsignedinteger]:
    """Return pairs (M,) with different numbers for copies: `end * n` more for copy n, from 0.

    Args:
        pairs: (M,) numbers of pairs below `end`; copies are neighbors.
        end: a number above all of them.
    """
    places = np.arange(len(pairs))
    is_first = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
    copies = places - np.maximum.accumulate(np.where(is_first, places, 0))
    kind = number_type(end * (1 + int(copies.max(initial=0))))
    return pairs.astype(kind) + kind(end) * copies.astype(kind)


def deal(
    parts: Sequence[NDArray[np.unsignedinteger]], num_sections: int, offset: int = 0
) -> Selected:
    """Deal the pairs of an epoch to sections.

    Args:
        parts: the pairs of each corpus; copies are neighbors.
        num_sections: number of sections, S.
        offset: the section that the first pair is dealt to, modulo S.

    Returns:
        The pairs, of which each section has the same number of each corpus, or one more or less.
    """
    firsts = np.cumsum([offset, *(len(part) for part in parts)])[:-1]
    dealt = list(zip(parts, firsts.tolist(), strict=True))
    hands = [
        [part[(number - first) % num_sections :: num_sections] for part, first in dealt]
        for number in range(num_sections)
    ]
    sizes = [sum(len(cards) for cards in hand) for hand in hands]
    kind = np.result_type(*parts)
    pairs = np.empty(sum(sizes), kind)
    np.concatenate([cards for hand in hands for cards in hand], out=pairs)
    return Selected(pairs, np.cumsum([0, *sizes]))
