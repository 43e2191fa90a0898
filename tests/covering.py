"""Few sets of options that cover all pairs of options: a pairwise covering array."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

Pair = frozenset[str]


def all_pairs(axes: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return all pairs of values of different axes, in order.

    Args:
        axes: the values of each axis; no two axes share a value.
    """
    return [
        (value, other)
        for first, second in combinations(axes.values(), 2)
        for value in first
        for other in second
    ]


def covering_rows(
    axes: Mapping[str, Sequence[str]], refused: Collection[Pair]
) -> list[tuple[str, ...]]:
    """Return rows in which all pairs of values occur that are not refused.

    A row is made greedily: axis by axis, it takes the value that covers most pairs that no row
    before it has, and none if there are no such pairs. The result is the same in every process.

    Args:
        axes: see `all_pairs`.
        refused: pairs that cannot be in a row.

    Returns:
        Rows with at most one value per axis, in the order of the axes.
    """
    left = {pair: None for pair in map(frozenset, all_pairs(axes)) if pair not in refused}
    rows = []
    while left:
        row: list[str] = list(next(iter(left)))
        row = _filled(row, axes, left, refused)
        left = {pair: None for pair in left if not pair <= set(row)}
        rows.append(tuple(value for values in axes.values() for value in values if value in row))
    return rows


def _filled(
    row: list[str],
    axes: Mapping[str, Sequence[str]],
    left: Mapping[Pair, None],
    refused: Collection[Pair],
) -> list[str]:
    """Add a value of each axis that still covers something; the most useful one first."""
    open_axes = [values for values in axes.values() if not set(values) & set(row)]
    while open_axes:
        gains = [
            (sum(frozenset((value, other)) in left for other in row), -number, value)
            for number, values in enumerate(open_axes)
            for value in values
            if not any(frozenset((value, other)) in refused for other in row)
        ]
        if not gains or max(gains)[0] == 0:
            break
        _, number, value = max(gains)
        row = [*row, value]
        del open_axes[-number]
    return row
