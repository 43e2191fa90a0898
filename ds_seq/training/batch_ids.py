"""Which pairs the batches of an update hold, for a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ds_seq import distributed
from ds_seq.data.batch import Batch
from ds_seq.data.source import Dataset, InParts

_SHOWN = 8

PairNumbers = Callable[[Sequence[int]], dict[str, list[int]]]
"""Rows of `Batch.indices` -> numbers of their pairs, from 1, by name of the corpus."""


def pair_numbers(dataset: Dataset, rows: Sequence[int]) -> dict[str, list[int]]:
    """Return the numbers of some pairs in their corpora, as `ds-seq show-batch` prints them.

    Args:
        dataset: the training examples.
        rows: numbers of the pairs in all shards, from 0.

    Returns:
        Numbers from 1 by name of the corpus; of a data set without corpora by `train`.
    """
    if not isinstance(dataset, InParts):
        return {"train": [row + 1 for row in rows]} if rows else {}
    found: dict[str, list[int]] = {}
    for part in dataset.parts:
        numbers = [row - part.rows.start + 1 for row in rows if row in part.rows]
        if numbers:
            found[part.name] = numbers
    return found


def gather_pairs(batches: Sequence[Batch], numbers: PairNumbers) -> list[dict[str, Any]]:
    """Return the pairs of the batches of all ranks; empty on ranks other than 0. A collective.

    Returns:
        For each batch its `rank`, `batch` (its number in the update, from 0) and `pairs`.
    """
    mine = [
        {"rank": distributed.rank(), "batch": place, "pairs": numbers(batch.indices.tolist())}
        for place, batch in enumerate(batches)
    ]
    of_ranks = distributed.gather_objects(mine)
    return [each for of_rank in of_ranks or [] for each in of_rank]


def shown(batches: Sequence[dict[str, Any]]) -> str:
    """Describe the pairs of some batches in one short line."""
    pairs = [
        f"{name} {number}"
        for each in batches
        for name, numbers in each["pairs"].items()
        for number in numbers
    ]
    more = f" and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
    return f"pairs {', '.join(pairs[:_SHOWN])}{more}"
