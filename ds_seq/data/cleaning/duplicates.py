"""Find pairs that repeat others, in memory that does not grow with their number.

Only hashes, scores and row numbers are looked at. Many of them are first distributed over files by
their hash, so that equal ones meet in one file, and each file is sorted by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq import files

_ROWS_AT_A_TIME = 1 << 17
ROWS_PER_FILE = 1 << 17
_MOST_FILES = 512
_ENTRY = np.dtype([("hash", np.uint64), ("row", np.uint64), ("score", np.float64)])

Entries = NDArray[np.void]
"""Array (N,) of `_ENTRY`."""


class RowSet:
    """A set of row numbers below `size`, one bit each."""

    def __init__(self, size: int) -> None:
        self._bits = np.zeros((size + 7) // 8, np.uint8)

    def add(self, rows: NDArray[np.uint64]) -> None:
        """Add rows (N,)."""
        bits = np.left_shift(np.uint8(1), (rows & np.uint64(7)).astype(np.uint8))
        np.bitwise_or.at(self._bits, rows >> np.uint64(3), bits)

    def between(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return a mask (last - first,) of the rows from `first` up to `last`."""
        start = first // 8
        bits = np.unpackbits(self._bits[start : (last + 7) // 8], bitorder="little")
        return bits[first - 8 * start : last - 8 * start].astype(bool)


def entries(
    first_row: int, hashes: NDArray[np.uint64], scores: NDArray[np.float64] | None
) -> Entries:
    """Return the entries of consecutive rows.

    Args:
        first_row: number of the first row.
        hashes: hash of each row (N,).
        scores: score of each row (N,), if there are any.
    """
    found = np.empty(len(hashes), _ENTRY)
    found["hash"] = hashes
    found["row"] = np.arange(first_row, first_row + len(hashes), dtype=np.uint64)
    found["score"] = 0.0 if scores is None else scores
    return found


def find_repeated(
    parts: Iterable[Entries], size: int, most: int, folder: Path
) -> Iterator[NDArray[np.uint64]]:
    """Yield the rows that are to be dropped, in several arrays (N,) and in no order.

    Of the rows with the same hash, those with the best scores stay, of equal scores the first.

    Args:
        parts: entries of all rows, in any order.
        size: about the number of rows.
        most: number of rows with the same hash that stay.
        folder: folder for temporary files, which is created if it is needed.

    Raises:
        UserError: a temporary file cannot be written.
    """
    if size <= ROWS_PER_FILE:
        every = list(parts)
        if every:
            yield _repeated(np.concatenate(every), most)
        return
    bits = min(max(1, (size // ROWS_PER_FILE).bit_length()), _MOST_FILES.bit_length() - 1)
    paths = [folder / f"{number:03}" for number in range(1 << bits)]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack, files.writing(folder):
            outputs = [stack.enter_context(open(path, "wb")) for path in paths]
            for rows in _in_batches(parts):
                place = (rows["hash"] >> np.uint64(64 - bits)).astype(np.int64)
                order = np.argsort(place, kind="stable")
                ends = np.cumsum(np.bincount(place, minlength=len(paths)))
                for output, some in zip(outputs, np.split(rows[order], ends[:-1]), strict=True):
                    output.write(some.tobytes())
        for path in paths:
            yield _repeated(np.fromfile(path, _ENTRY), most)
            path.unlink()
    finally:
        files.remove(folder)


def _in_batches(parts: Iterable[Entries]) -> Iterator[Entries]:
    batch: list[Entries] = []
    for part in parts:
        batch.append(part)
        if sum(map(len, batch)) >= _ROWS_AT_A_TIME:
            yield np.concatenate(batch)
            batch.clear()
    if batch:
        yield np.concatenate(batch)


def _repeated(rows: Entries, most: int) -> NDArray[np.uint64]:
    order = np.lexsort((rows["row"], -rows["score"], rows["hash"]))
    hashes = rows["hash"][order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    starts = np.flatnonzero(is_first)
    place = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    found: NDArray[np.uint64] = rows["row"][order][place >= most]
    return found
