"""A data source: the first pairs of the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.shards import ShardReader
from ds_seq.data.source import TokenBlock


class FirstPairs:
    """Some pairs of a reader of shards, see `Source`."""

    def __init__(self, reader: ShardReader, count: int) -> None:
        self._reader = reader
        self.lengths = reader.lengths[:count]
        self.vocab_hash, self.vocab_size = reader.vocab_hash, reader.vocab_size
        self.fingerprint = f"{reader.fingerprint}:{count}"

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: NDArray[np.integer], /) -> tuple[TokenBlock, ...]:
        """See `Source`."""
        return self._reader.gather(indices)


def open_first(
    folder: str | Path, split: str, vocab_hash: str | None = None, *, pairs: int
) -> FirstPairs:
    """At most this many `pairs` of the shards in `folder`."""
    return FirstPairs(ShardReader(folder, split, vocab_hash), pairs)
