"""Binarized parallel text on disk: writer and memory-mapped reader.

A split is stored in one folder as numbered shards of four files each, and one manifest::

    train.0000.src.bin   concatenated ids of all source sentences, uint16 or uint32
    train.0000.src.idx   start of each sentence: int64, one more entry than sentences
    train.0000.tgt.bin   the same for the target side
    train.0000.tgt.idx
    train.manifest.json  vocabulary, counts, sizes and checksums of all files, and their origin

Each sentence ends with the end symbol. Numbers are little-endian. The manifest is removed first and
written last, so that a folder with a manifest is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.manifest import FileRecord, IdType, Manifest, ShardCounts
from ds_seq.data.origin import Origin
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.records import inside

SIDES = ("src", "tgt")


def manifest_path(folder: str | Path, split: str) -> Path:
    """Return the path of the manifest of a split."""
    return Path(folder) / f"{split}.manifest.json"


def files_fingerprint(checksums: Mapping[str, str]) -> str:
    """Combine the SHA-256 of several files, by name, into one fingerprint."""
    lines = "".join(f"{name} {checksums[name]}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def id_type(vocab_size: int) -> IdType:
    """Return the smallest on-disk type that can represent every id of a vocabulary."""
    return "uint16" if vocab_size < 1 << 16 else "uint32"


def id_dtype(vocab_size: int) -> np.dtype:
    """Return this type with the byte order on disk."""
    return np.dtype(id_type(vocab_size)).newbyteorder("<")


class _SideWriter:
    """One side of one shard, under temporary names until `publish`."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self._folder = folder
        self._dtype = dtype
        self._names = (f"{name}.bin", f"{name}.idx")
        self._digest = hashlib.sha256()
        self._lengths: list[NDArray[np.int64]] = []
        self.tokens = 0
        self._file: BinaryIO = open(self._temporary(self._names[0]), "wb")  # noqa: SIM115

    def _temporary(self, name: str) -> Path:
        return files.temporary_path(self._folder / name)

    def write(self, block: TokenBlock) -> None:
        content = block.tokens.astype(self._dtype, copy=False).tobytes()
        self._digest.update(content)
        self._file.write(content)
        self._lengths.append(block.lengths.astype(np.int64))
        self.tokens += len(block.tokens)

    def finish(self) -> dict[str, FileRecord]:
        """Finish the temporary files and return their records by final name."""
        self._file.close()
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8").tobytes()
        self._temporary(self._names[1]).write_bytes(offsets)
        return {
            self._names[0]: FileRecord(
                self.tokens * self._dtype.itemsize, self._digest.hexdigest()
            ),
            self._names[1]: FileRecord(len(offsets), hashlib.sha256(offsets).hexdigest()),
        }

    def publish(self) -> None:
        for name in self._names:
            self._temporary(name).replace(self._folder / name)

    def sync(self) -> None:
        for name in self._names:
            files.sync(self._temporary(name))

    def discard(self) -> None:
        with suppress(OSError):  # on a full disk, the last bytes cannot be written now either
            self._file.close()
        for name in self._names:
            with suppress(OSError):
                self._temporary(name).unlink(missing_ok=True)


class ShardWriter:
    """Context manager that writes one split and replaces existing shards only on success.

    Args:
        folder: folder of the shards, created if missing.
        split: `train`, `valid`, `test` or another name.
        vocab_hash: `Tokenizers.fingerprint` of the tokenizers of the ids.
        vocab_size: vocabulary size, which determines the width of an id on disk.
        languages: source and target language.
        shard_size: number of sentence pairs per shard (the last one may have fewer).
        inputs: checksums of the texts, for `Manifest.inputs`.
        origin: what the texts and the vocabulary were made from.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        vocab_hash: str,
        vocab_size: int,
        languages: tuple[str, str],
        shard_size: int,
        inputs: Sequence[str] = (),
        origin: Origin = Origin(),  # noqa: B008 - a constant
    ) -> None:
        self._folder = Path(folder)
        self._split = split
        self._shard_size = shard_size
        self._header = Manifest(
            vocab_hash, vocab_size, id_type(vocab_size), languages, (), {}, tuple(inputs), origin
        )
        self._shards: list[list[_SideWriter]] = []
        self._pairs: list[int] = []
        with files.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(self._folder, f"{split}.*", only_dead=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()

    def add(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Append one pair, whose sides must already end with the end symbol."""
        self.add_block(
            *(
                TokenBlock(np.asarray(ids, np.int64), np.asarray([len(ids)]))
                for ids in (source, target)
            )
        )

    def add_block(self, source: TokenBlock, target: TokenBlock) -> None:
        """Append the pairs of two blocks with the same number of sentences."""
        assert len(source.lengths) == len(target.lengths)
        start = 0
        while start < len(source.lengths):
            if not self._shards or self._pairs[-1] == self._shard_size:
                self._open_shard()
            room = self._shard_size - self._pairs[-1]
            stop = min(start + room, len(source.lengths))
            with files.writing(self._folder):
                for writer, block in zip(self._shards[-1], (source, target), strict=True):
                    writer.write(_cut(block, start, stop))
            self._pairs[-1] += stop - start
            start = stop

    def _open_shard(self) -> None:
        dtype = id_dtype(self._header.vocab_size)
        name = f"{self._split}.{len(self._shards):04d}"
        shard: list[_SideWriter] = []
        self._shards.append(shard)  # first, so that `discard` knows one side if the other fails
        self._pairs.append(0)
        with files.writing(self._folder):
            for side in SIDES:
                shard.append(_SideWriter(self._folder, f"{name}.{side}", dtype))

    def close(self) -> Manifest:
        """Replace existing shards of this split with the new ones; return their manifest."""
        if not self._shards:
            raise UserError(
                f"{self._folder}: split {self._split!r} is empty: there are no sentence pairs "
                "to write; check the text files and the limits of data.clean"
            )
        writers = [writer for shard in self._shards for writer in shard]
        path = manifest_path(self._folder, self._split)
        # nothing of the old shards is removed before all of the new ones is on the disk
        with files.writing(self._folder), files.replacing(path) as new_manifest:
            records: dict[str, FileRecord] = {}
            for writer in writers:
                records |= writer.finish()
                writer.sync()
            counts = tuple(
                ShardCounts(pairs, source.tokens, target.tokens)
                for pairs, (source, target) in zip(self._pairs, self._shards, strict=True)
            )
            manifest = replace(self._header, shards=counts, files=records)
            manifest.write(new_manifest)
            path.unlink(missing_ok=True)
            for old in self._folder.glob(f"{self._split}.[0-9][0-9][0-9][0-9]*.???"):
                old.unlink()
            for writer in writers:
                writer.publish()
        return manifest

    def discard(self) -> None:
        """Remove the files written so far; existing shards of this split are unchanged."""
        for shard in self._shards:
            for writer in shard:
                writer.discard()


def _cut(block: TokenBlock, start: int, stop: int) -> TokenBlock:
    """Return sentences `start` to `stop` of a block."""
    if start == 0 and stop == len(block.lengths):
        return block
    first = int(block.lengths[:start].sum())
    last = first + int(block.lengths[start:stop].sum())
    return TokenBlock(block.tokens[first:last], block.lengths[start:stop])


def check_ids(ids: NDArray[np.integer], vocab_size: int, folder: Path, remedy: str) -> None:
    """Check that stored ids are those of a vocabulary, before a model looks them up.

    Raises:
        UserError: they are not.
    """
    if ids.size and (largest := int(ids.max())) >= vocab_size:
        raise UserError(
            f"{folder}: is damaged (token {largest:,} of a vocabulary of {vocab_size:,}); {remedy}"
        )


def _mapped(path: Path, dtype: np.dtype, length: int) -> NDArray[Any]:
    """Map a file of `length` numbers into memory."""
    path = inside(path.parent, path.name)
    size = path.stat().st_size if path.is_file() else 0
    if size != length * dtype.itemsize:
        raise UserError(
            f"{path}: has {size:,} bytes, but its shard has {length:,} entries of "
            f"{dtype.itemsize} bytes; copy it again or run `ds-seq prepare` again"
        )
    return np.memmap(path, dtype, "r")


class _Side:
    """All shards of one side as one list of sentences."""

    def __init__(self, folder: Path, split: str, side: str, manifest: Manifest) -> None:
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._paths = [
            folder / f"{split}.{shard:04d}.{side}" for shard in range(len(manifest.shards))
        ]
        self._tokens: list[NDArray[np.integer]] = []
        self._offsets: list[NDArray[np.int64]] = []
        for path, counts in zip(self._paths, manifest.shards, strict=True):
            tokens = counts.src_tokens if side == SIDES[0] else counts.tgt_tokens
            self._tokens.append(_mapped(path.with_name(f"{path.name}.bin"), dtype, tokens))
            offsets = _mapped(path.with_name(f"{path.name}.idx"), np.dtype("<i8"), counts.pairs + 1)
            self._offsets.append(offsets)

    def lengths(self) -> NDArray[np.int32]:
        """(N,) lengths of all sentences."""
        lengths = []
        for path, tokens, offsets in zip(self._paths, self._tokens, self._offsets, strict=True):
            steps = np.diff(offsets)
            if offsets[0] != 0 or offsets[-1] != len(tokens) or (steps < 1).any():
                raise UserError(
                    f"{path}.idx: is damaged (sentences do not follow each other); copy it again "
                    "or run `ds-seq prepare` again"
                )
            lengths.append(steps.astype(np.int32))
        return np.concatenate([np.zeros(0, np.int32), *lengths])

    def sentence(self, shard: int, row: int) -> NDArray[np.integer]:
        start, stop = self._offsets[shard][row : row + 2]
        return np.asarray(self._tokens[shard][start:stop])

    def gather(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> TokenBlock:
        """Copy sentences, given as (N,) shard numbers and (N,) rows within their shards."""
        starts = np.empty(len(rows), np.int64)
        lengths = np.empty(len(rows), np.int64)
        present = np.unique(shards)
        for shard in present:
            chosen = shards == shard
            offsets = self._offsets[shard]
            starts[chosen] = offsets[rows[chosen]]
            lengths[chosen] = offsets[rows[chosen] + 1] - starts[chosen]
        ends = np.cumsum(lengths)
        # position of each token in its shard: start of its sentence + position in the sentence
        places = np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])
        if len(present) == 1:
            return TokenBlock(self._tokens[present[0]][places], lengths)
        tokens = np.empty(len(places), self._tokens[0].dtype)
        for shard in present:
            here = np.repeat(shards == shard, lengths)
            tokens[here] = self._tokens[shard][places[here]]
        return TokenBlock(tokens, lengths)


class ShardReader:
    """A `Source` of the memory-mapped sentences of one split; only lengths are kept in memory.

    `reader[i]` is a pair of id arrays, both with the end symbol.

    Args:
        folder: folder of the shards.
        split: name of the split.
        vocab_hash: required `Tokenizers.fingerprint` of the shards; None allows any.

    Attributes:
        lengths: (N, 2) lengths of the source and target sentences, end symbol included.

    Raises:
        UserError: the folder or manifest is missing, a file is missing, truncated or damaged, or
            the shards belong to another vocabulary.
    """

    def __init__(self, folder: str | Path, split: str, vocab_hash: str | None = None) -> None:
        self._folder = Path(folder)
        path = manifest_path(folder, split)
        self.manifest = Manifest.read(path)
        if vocab_hash is not None and vocab_hash != self.manifest.vocab_hash:
            raise UserError(
                f"{path}: the shards were made with vocabulary {self.manifest.vocab_hash}, but the "
                f"vocabulary given is {vocab_hash}; run `ds-seq prepare` again, or use the "
                "vocabulary that the shards were made with"
            )
        total = sum(record.size for record in self.manifest.files.values())
        self.check(full=total <= files.CHECKED_AT_LOAD)
        self._sides = tuple(_Side(self._folder, split, side, self.manifest) for side in SIDES)
        columns = [side.lengths() for side in self._sides]
        self.lengths: NDArray[np.int32] = np.stack(columns, axis=1)
        self._first = np.cumsum([0, *(shard.pairs for shard in self.manifest.shards)])

    def check(self, full: bool = False) -> None:
        """Compare file sizes with the manifest; with `full`, also checksums (reads all files)."""
        self.manifest.check_files(self._folder, full)

    def __len__(self) -> int:
        return self.manifest.pairs

    def __getitem__(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        source, target = (s.sentence(shard, index - int(self._first[shard])) for s in self._sides)
        return source, target

    @property
    def vocab_hash(self) -> str:
        """Fingerprint of the vocabulary of the ids."""
        return self.manifest.vocab_hash

    @property
    def vocab_size(self) -> int:
        """Size of that vocabulary."""
        return self.manifest.vocab_size

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content of all files; see `files_fingerprint`."""
        return files_fingerprint({name: file.sha256 for name, file in self.manifest.files.items()})

    def gather(self, indices: NDArray[np.integer]) -> tuple[TokenBlock, TokenBlock]:
        """Copy the pairs with the given numbers (N,), N >= 1, without a Python loop over them."""
        shards = np.searchsorted(self._first, indices, side="right") - 1
        rows = indices - self._first[shards]
        source, target = (side.gather(shards, rows) for side in self._sides)
        for block in (source, target):
            check_ids(block.tokens, self.vocab_size, self._folder, "run `ds-seq prepare` again")
        return source, target
