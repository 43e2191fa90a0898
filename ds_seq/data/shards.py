"""Binarized text on disk, mostly parallel: the memory-mapped reader.

A split is stored in one folder as numbered shards of two files each, one file of lengths, and one
manifest::

    train.0000.src.bin   concatenated ids of the source sentences of the shard, uint16 or uint32
    train.0000.tgt.bin   the same for the target side
    train.lengths        lengths of both sides of all pairs of all shards, (N, 2) int32
    train.manifest.json  vocabulary, counts, sizes and checksums of all files, and their origin

Text of one side has `train.0000.txt.bin` in place of these two, and lengths (N, 1).

Shapes: N pairs or texts; n rows of one shard; sides: 2, source and target, or 1.

Each sentence ends with the end symbol. Numbers are little-endian. The manifest is removed first and
written last, so that a folder with a manifest is complete. `ds_seq.data.shard_writer` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.manifest import CorpusRecord, Manifest
from ds_seq.data.shard_files import (
    LENGTH,
    files_fingerprint,
    id_dtype,
    id_type,
    lengths_path,
    manifest_path,
    mapped,
    shard_path,
    side_names,
)
from ds_seq.data.shard_offsets import OffsetIndex
from ds_seq.data.shard_writer import ShardWriter
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.records import inside

__all__ = [
    "ShardReader",
    "ShardWriter",
    "TokenBlock",
    "check_ids",
    "files_fingerprint",
    "id_dtype",
    "id_type",
    "manifest_path",
]

_FEW_SHARDS = 64
_CHECKED = 256 << 20
"""Bytes of a split of few shards that are compared with their checksums when it is opened."""
_STEP = 32  # rows per stored start: 0.25 bytes a pair in memory
_MOST_ROWS = 4096  # rows looked up at a time
_BEFORE = np.arange(_STEP)


def check_ids(ids: NDArray[np.integer], vocab_size: int, folder: Path, remedy: str) -> None:
    """Check that stored ids are those of a vocabulary, before a model looks them up.

    Raises:
        UserError: they are not.
    """
    if ids.size and (largest := int(ids.max())) >= vocab_size:
        raise UserError(
            f"{folder}: is damaged (token {largest:,} of a vocabulary of {vocab_size:,}); {remedy}"
        )


class ShardIndex(Protocol):
    """Lengths and starts of all sentences.

    Attributes:
        lengths: (N, sides) lengths, end symbols included.
    """

    lengths: NDArray[np.int32]

    def starts(self, shard: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n, sides) numbers of the first tokens of rows (n,) of a shard, within it."""


class _LengthIndex:
    """The index of format 2: one mapped file of lengths, summed up shard by shard where needed.

    Raises:
        UserError: the file is missing or has another size.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        self._path = lengths_path(folder, split)
        inside(folder, self._path.name)
        sides = self._sides = manifest.sides
        self.lengths = mapped(self._path, LENGTH, sides * manifest.pairs).reshape(-1, sides)
        self._shards = manifest.shards
        self._first = np.cumsum([0, *(shard.pairs for shard in manifest.shards)])
        self._starts: dict[int, NDArray[np.integer]] = {}  # of each shard: (n / _STEP, sides)

    def starts(self, shard: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `ShardIndex`.

        Raises:
            UserError: the lengths are not those of the shard.
        """
        if shard not in self._starts:
            self._starts[shard] = self._sums(shard)
        first, last = self._first[shard : shard + 2]
        lengths = self.lengths[first:last]
        result = np.empty((len(rows), self._sides), np.int64)
        for begin in range(0, len(rows), _MOST_ROWS):
            part = rows[begin : begin + _MOST_ROWS]
            blocks, rest = np.divmod(part, _STEP)
            places = np.minimum(blocks[:, None] * _STEP + _BEFORE, len(lengths) - 1)
            is_before = _BEFORE < rest[:, None]  # (n, _STEP)
            for side in range(self._sides):
                steps = lengths[:, side][places] * is_before
                sums = self._starts[shard][blocks, side] + steps.sum(1, dtype=np.int64)
                result[begin : begin + _MOST_ROWS, side] = sums
        return result

    def _sums(self, shard: int) -> NDArray[np.integer]:
        counts = self._shards[shard]
        lengths = self.lengths[self._first[shard] : self._first[shard + 1]]
        blocks = np.add.reduceat(lengths, np.arange(0, len(lengths), _STEP), dtype=np.int64)
        ends = np.cumsum(blocks, axis=0)
        tokens = (counts.src_tokens, counts.tgt_tokens)[: self._sides]
        if tuple(ends[-1]) != tokens or (lengths < 1).any():
            raise UserError(
                f"{self._path}: is damaged (its lengths are not those of shard {shard}); copy it "
                "again or run `ds-seq prepare` again"
            )
        starts = ends - blocks
        return starts.astype(np.uint32) if starts[-1].max() < 1 << 32 else starts


class ShardReader:
    """A `Source` of the memory-mapped sentences of one split.

    `reader[i]` has the id array of each side, with the end symbol. Opening reads the manifest and
    the lengths. A split of few shards is compared with the manifest, up to some size byte by byte.
    The shards of a larger one are looked for in a listing of the folder, and each is mapped and its
    size compared when a sentence of it is needed.

    Args:
        folder: folder of the shards.
        split: name of the split.
        vocab_hash: required `Tokenizers.fingerprint` of the shards; None allows any.

    Attributes:
        lengths: (N, sides) lengths of the sentences of each side, end symbol included; read-only,
            and mapped from the disk, so that the ranks of a node share them.

    Raises:
        UserError: the folder or manifest is missing, a file is missing, truncated or damaged, or
            the shards belong to another vocabulary. `gather` also raises it.
    """

    def __init__(self, folder: str | Path, split: str, vocab_hash: str | None = None) -> None:
        self._folder, self._split = Path(folder), split
        path = manifest_path(folder, split)
        self.manifest = Manifest.read(path)
        if vocab_hash is not None and vocab_hash != self.manifest.vocab_hash:
            raise UserError(
                f"{path}: the shards were made with vocabulary {self.manifest.vocab_hash}, but the "
                f"vocabulary given is {vocab_hash}; run `ds-seq prepare` again, or use the "
                "vocabulary that the shards were made with"
            )
        self._check_at_open()
        is_first_format = self.manifest.version == 1
        make: type[OffsetIndex | _LengthIndex] = OffsetIndex if is_first_format else _LengthIndex
        self._index: ShardIndex = make(self._folder, split, self.manifest)
        self.lengths: NDArray[np.int32] = self._index.lengths
        self._sides = side_names(self.manifest.sides)
        self._dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self._first = np.cumsum([0, *(shard.pairs for shard in self.manifest.shards)])
        self._tokens: dict[tuple[int, int], NDArray[Any]] = {}  # by shard and side
        if len(self.manifest.shards) <= _FEW_SHARDS:
            for shard in range(len(self.manifest.shards)):
                for side in range(len(self._sides)):
                    self._side(shard, side)

    def _check_at_open(self) -> None:
        manifest = self.manifest
        if len(manifest.shards) <= _FEW_SHARDS:
            total = sum(record.size for record in manifest.files.values())
            self.check(full=total <= min(_CHECKED, files.CHECKED_AT_LOAD))
            return
        manifest.check_names(self._folder)
        path = lengths_path(self._folder, self._split)
        record = manifest.files.get(path.name)
        if record is not None and record.size <= files.CHECKED_AT_LOAD:
            manifest.check_file(self._folder, path.name, full=True)

    def check(self, full: bool = False) -> None:
        """Compare file sizes with the manifest; with `full`, also checksums (reads all files)."""
        self.manifest.check_files(self._folder, full)

    def __len__(self) -> int:
        return self.manifest.pairs

    def __getitem__(self, index: int) -> tuple[NDArray[np.integer], ...]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return tuple(block.tokens for block in self.gather(np.asarray([index])))

    @property
    def vocab_hash(self) -> str:
        """Fingerprint of the vocabulary of the ids."""
        return self.manifest.vocab_hash

    @property
    def vocab_size(self) -> int:
        """Size of that vocabulary."""
        return self.manifest.vocab_size

    @property
    def corpora(self) -> tuple[CorpusRecord, ...]:
        """The corpora; a split that was made without names is one, named like the split."""
        manifest = self.manifest
        if manifest.corpora:
            return manifest.corpora
        return (
            CorpusRecord(self._split, 0, len(self), manifest.languages, tuple(manifest.inputs)),
        )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content of all files; see `files_fingerprint`."""
        return files_fingerprint({name: file.sha256 for name, file in self.manifest.files.items()})

    def gather(self, indices: NDArray[np.integer]) -> tuple[TokenBlock, ...]:
        """Copy the pairs or texts (N,) with these numbers, N >= 1, without a Python loop over them.

        Raises:
            UserError: a shard is missing or damaged.
        """
        shards = np.searchsorted(self._first, indices, side="right") - 1
        rows = indices - self._first[shards]
        lengths = self.lengths[indices].astype(np.int64)
        ends = np.cumsum(lengths, axis=0)
        out = [np.empty(total, self._dtype) for total in ends[-1]]
        for shard, places in _groups(shards):
            starts = self._index.starts(shard, rows[places])
            for side in range(len(self._sides)):
                _copy_sentences(
                    out[side],
                    (ends - lengths)[places, side],
                    self._side(shard, side),
                    starts[:, side],
                    lengths[places, side],
                )
        for tokens in out:
            check_ids(tokens, self.vocab_size, self._folder, "run `ds-seq prepare` again")
        return tuple(TokenBlock(*side) for side in zip(out, lengths.T, strict=True))

    def _side(self, shard: int, side: int) -> NDArray[Any]:
        """Return the tokens of one side of a shard, mapped when they are first needed."""
        tokens = self._tokens.get((shard, side))
        if tokens is None:
            counts = self.manifest.shards[shard]
            path = shard_path(self._folder, self._split, shard, self._sides[side])
            length = (counts.src_tokens, counts.tgt_tokens)[side]
            tokens = mapped(inside(self._folder, path.name), self._dtype, length)
            self._tokens[shard, side] = tokens
        return tokens


def _copy_sentences(
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


def _groups(values: NDArray[np.integer]) -> Sequence[tuple[int, NDArray[np.int64]]]:
    """Return each different value, with the places (n,) where it stands."""
    order = np.argsort(values, kind="stable")
    present, first = np.unique(values[order], return_index=True)
    return list(zip(present.tolist(), np.split(order, first[1:]), strict=True))
