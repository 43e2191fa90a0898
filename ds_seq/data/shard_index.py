"""Where the sentences of a split are: their lengths, and their starts within their shards.

Shapes: N pairs; n rows of one shard; 2 sides, source and target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.manifest import Manifest, ShardCounts
from ds_seq.data.shard_files import LENGTH, OFFSET, SIDES, lengths_path, mapped, shard_path
from ds_seq.errors import UserError
from ds_seq.records import inside

_STEP = 32  # rows per stored start: 0.25 bytes a pair in memory
_MOST_ROWS = 4096  # rows looked up at a time
_BEFORE = np.arange(_STEP)


class ShardIndex(Protocol):
    """Lengths and starts of all sentences.

    Attributes:
        lengths: (N, 2) lengths, end symbols included.
    """

    lengths: NDArray[np.int32]

    def starts(self, shard: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n, 2) numbers of the first tokens of rows (n,) of a shard, within the shard."""


class LengthIndex:
    """The index of format 2: one mapped file of lengths, summed up shard by shard where needed.

    Raises:
        UserError: the file is missing or has another size.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self._path = lengths_path(folder, split)
        inside(folder, self._path.name)
        self.lengths = mapped(self._path, LENGTH, 2 * manifest.pairs).reshape(-1, 2)
        self._shards = manifest.shards
        self._first = np.cumsum([0, *(shard.pairs for shard in manifest.shards)])
        self._starts: dict[int, NDArray[np.integer]] = {}  # of each shard: (n / _STEP, 2)

    def starts(self, shard: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `ShardIndex`.

        Raises:
            UserError: the lengths are not those of the shard.
        """
        if shard not in self._starts:
            self._starts[shard] = self._sums(shard)
        first, last = self._first[shard : shard + 2]
        lengths = self.lengths[first:last]
        result = np.empty((len(rows), 2), np.int64)
        for begin in range(0, len(rows), _MOST_ROWS):
            part = rows[begin : begin + _MOST_ROWS]
            blocks, rest = np.divmod(part, _STEP)
            places = np.minimum(blocks[:, None] * _STEP + _BEFORE, len(lengths) - 1)
            is_before = _BEFORE < rest[:, None]  # (n, _STEP)
            for side in range(2):
                steps = lengths[:, side][places] * is_before
                sums = self._starts[shard][blocks, side] + steps.sum(1, dtype=np.int64)
                result[begin : begin + _MOST_ROWS, side] = sums
        return result

    def _sums(self, shard: int) -> NDArray[np.integer]:
        counts = self._shards[shard]
        lengths = self.lengths[self._first[shard] : self._first[shard + 1]]
        blocks = np.add.reduceat(lengths, np.arange(0, len(lengths), _STEP), dtype=np.int64)
        ends = np.cumsum(blocks, axis=0)
        if tuple(ends[-1]) != (counts.src_tokens, counts.tgt_tokens) or (lengths < 1).any():
            raise UserError(
                f"{self._path}: is damaged (its lengths are not those of shard {shard}); copy it "
                "again or run `ds-seq prepare` again"
            )
        starts = ends - blocks
        return starts.astype(np.uint32) if starts[-1].max() < 1 << 32 else starts


class OffsetIndex:
    """The index of format 1: an `.idx` file of offsets for each side of each shard.

    Raises:
        UserError: a file is missing, has another size or is damaged.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self._offsets = [
            [_offsets(folder, split, shard, side, counts) for side in SIDES]
            for shard, counts in enumerate(manifest.shards)
        ]
        lengths = np.empty((manifest.pairs, 2), np.int32)
        end = 0
        for sides in self._offsets:
            start, end = end, end + len(sides[0]) - 1
            for side, offsets in enumerate(sides):
                lengths[start:end, side] = np.diff(offsets)
        self.lengths: NDArray[np.int32] = lengths

    def starts(self, shard: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `ShardIndex`."""
        return np.stack([offsets[rows] for offsets in self._offsets[shard]], axis=1)


def _offsets(
    folder: Path, split: str, shard: int, side: str, counts: ShardCounts
) -> NDArray[np.int64]:
    path = shard_path(folder, split, shard, side).with_suffix(".idx")
    offsets: NDArray[np.int64] = mapped(inside(folder, path.name), OFFSET, counts.pairs + 1)
    total = counts.src_tokens if side == SIDES[0] else counts.tgt_tokens
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 1).any():
        raise UserError(
            f"{path}: is damaged (sentences do not follow each other); copy it again or run "
            "`ds-seq prepare` again"
        )
    return offsets


def copy_sentences(
    out: NDArray[np.integer],
    out_starts: NDArray[np.int64],
    tokens: NDArray[np.integer],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """Copy sentences between two sequences of tokens; all of (n,) are numbers of tokens."""
    if len(starts) < 4:  # the usual case if there are more shards than sentences in a batch
        for to, start, length in zip(*(a.tolist() for a in (out_starts, starts, lengths))):  # noqa: B905
            out[to : to + length] = tokens[start : start + length]
        return
    ends = np.cumsum(lengths)
    inner = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    out[np.repeat(out_starts, lengths) + inner] = tokens[np.repeat(starts, lengths) + inner]


def groups(values: NDArray[np.integer]) -> Sequence[tuple[int, NDArray[np.int64]]]:
    """Return each different value, with the places (n,) where it stands."""
    order = np.argsort(values, kind="stable")
    present, first = np.unique(values[order], return_index=True)
    return list(zip(present.tolist(), np.split(order, first[1:]), strict=True))
