"""Where the sentences of shards of format 1 are: an `.idx` file of offsets for each side.

Shapes: N pairs; n rows of one shard; 2 sides, source and target.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.manifest import Manifest, ShardCounts
from ds_seq.data.shard_files import OFFSET, SIDES, mapped, shard_path
from ds_seq.errors import UserError
from ds_seq.records import inside


class OffsetIndex:
    """The `ShardIndex` of format 1.

    Attributes:
        lengths: (N, 2) lengths, end symbols included.

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
