"""Writer of shards; the format is in `ds_seq.data.shards` and prepare_data/README.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.manifest import CorpusRecord, FileRecord, Manifest, ShardCounts
from ds_seq.data.origin import Origin
from ds_seq.data.shard_files import (
    LENGTH,
    id_dtype,
    id_type,
    lengths_path,
    manifest_path,
    shard_path,
    side_names,
)
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.names import NumSides


class _FileWriter:
    """A file under a temporary name until `publish`, with its size and checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = files.temporary_path(path)
        self._digest = hashlib.sha256()
        self._size = 0
        self._file: BinaryIO = open(self._temporary, "wb")  # noqa: SIM115

    def write(self, numbers: NDArray[np.generic], dtype: np.dtype) -> None:
        content = np.ascontiguousarray(numbers, dtype).reshape(-1).view(np.uint8).data
        self._digest.update(content)
        self._file.write(content)
        self._size += len(content)

    def close(self) -> None:
        """Write what is left to the disk; few files are open at a time."""
        if not self._file.closed:
            self._file.close()
            files.sync(self._temporary)

    def record(self) -> FileRecord:
        return FileRecord(self._size, self._digest.hexdigest())

    def publish(self) -> None:
        self._temporary.replace(self.path)
        files.remember(self.path, {files.SHA256: self._digest.hexdigest()})

    def discard(self) -> None:
        with suppress(OSError):  # on a full disk, the last bytes cannot be written now either
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)


class ShardWriter:
    """Context manager that writes one split and replaces existing shards only on success.

    Args:
        folder: folder of the shards, created if missing.
        split: `train`, `valid`, `test` or another name.
        vocab_hash: `Tokenizers.fingerprint` of the tokenizers of the ids.
        vocab_size: vocabulary size, which determines the width of an id on disk.
        languages: source and target language.
        shard_size: number of sentence pairs per shard (the last one of a corpus may have fewer).
        inputs: checksums of the texts, for `Manifest.inputs`.
        origin: what the texts and the vocabulary were made from.
        num_sides: 2 for pairs, 1 for text of one side.
    """

    def __init__(  # noqa: PLR0913  (one argument per field of the manifest)
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
        num_sides: NumSides = 2,
    ) -> None:
        self._folder = Path(folder)
        self._sides = side_names(num_sides)
        self._split = split
        self._shard_size = shard_size
        self._dtype = id_dtype(vocab_size)
        self._header = Manifest(
            vocab_hash, vocab_size, id_type(vocab_size), languages, (), {}, tuple(inputs), origin,
            sides=num_sides,
        )  # fmt: skip
        self._files: list[_FileWriter] = []  # lengths, then the sides of each shard in turn
        self._counts: list[NDArray[np.int64]] = []  # of each shard: pairs and tokens of both sides
        self._corpora: list[CorpusRecord] = []
        self._is_full = True  # whether the next pair starts a shard
        self._total = 0
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

    def begin_corpus(
        self, name: str, languages: tuple[str, str], inputs: Sequence[str] = ()
    ) -> None:
        """Record that the pairs from here on are a corpus, and start a new shard with them.

        Args:
            name: its name in `data.corpora`.
            languages: source and target language.
            inputs: checksums of its texts.
        """
        assert bool(self._corpora) or self._total == 0, "pairs before the first corpus"
        self._end_corpus()
        # at least one pair is only known at its end; `_end_corpus` puts the number right
        self._corpora.append(CorpusRecord(name, self._total, 1, languages, tuple(inputs)))
        self._is_full = True

    def _end_corpus(self) -> None:
        if not self._corpora:
            return
        last = self._corpora[-1]
        if self._total == last.first_row:
            raise UserError(
                f"{self._folder}: corpus {last.name!r} is empty: there are no sentence pairs to "
                "write; check its text files and the limits of data.clean, or leave it out"
            )
        self._corpora[-1] = replace(last, num_rows=self._total - last.first_row)

    def add(self, *sides: Sequence[int]) -> None:
        """Append one pair or text, whose sides must already end with the end symbol."""
        self.add_block(
            *(TokenBlock(np.asarray(ids, np.int64), np.asarray([len(ids)])) for ids in sides)
        )

    def add_block(self, *sides: TokenBlock) -> None:
        """Append the pairs of two blocks with the same number of sentences, or one block."""
        num_pairs = len(sides[0].lengths)
        assert num_pairs == len(sides[-1].lengths)
        assert len(sides) == len(self._sides)
        start = 0
        while start < num_pairs:
            with files.writing(self._folder):
                if self._is_full:
                    self._open_shard()
                counts = self._counts[-1]
                stop = min(start + self._shard_size - int(counts[0]), num_pairs)
                blocks = [cut(block, start, stop) for block in sides]
                for writer, block in zip(self._files[-len(sides) :], blocks, strict=True):
                    writer.write(block.tokens, self._dtype)
                lengths = np.stack([block.lengths for block in blocks], axis=1)
                self._files[0].write(lengths, LENGTH)
            tokens = [len(block.tokens) for block in blocks]
            counts += (stop - start, tokens[0], 0 if len(tokens) == 1 else tokens[1])
            self._is_full = counts[0] == self._shard_size
            self._total += stop - start
            start = stop

    def _open_shard(self) -> None:
        if not self._files:
            self._files.append(_FileWriter(lengths_path(self._folder, self._split)))
        for writer in self._files[1:][-len(self._sides) :]:
            writer.close()
        for side in self._sides:
            path = shard_path(self._folder, self._split, len(self._counts), side)
            self._files.append(_FileWriter(path))
        self._counts.append(np.zeros(3, np.int64))
        self._is_full = False

    def close(self) -> Manifest:
        """Replace existing shards of this split with the new ones; return their manifest."""
        if not self._counts:
            raise UserError(
                f"{self._folder}: split {self._split!r} is empty: there are no sentence pairs "
                "to write; check the text files and the limits of data.clean"
            )
        self._end_corpus()
        path = manifest_path(self._folder, self._split)
        # nothing of the old shards is removed before all of the new ones is on the disk
        with files.writing(self._folder), files.replacing(path) as new_manifest:
            for writer in self._files:
                writer.close()
            manifest = replace(
                self._header,
                shards=tuple(ShardCounts(*counts.tolist()) for counts in self._counts),
                files={writer.path.name: writer.record() for writer in self._files},
                corpora=tuple(self._corpora),
            )
            new_manifest.write_bytes(manifest.to_bytes())
            path.unlink(missing_ok=True)
            for old in self._folder.glob(f"{self._split}.[0-9][0-9][0-9][0-9]*.???"):
                old.unlink()
            for writer in self._files:
                writer.publish()
        return manifest

    def discard(self) -> None:
        """Remove the files written so far; existing shards of this split are unchanged."""
        for writer in self._files:
            writer.discard()


def cut(block: TokenBlock, start: int, stop: int) -> TokenBlock:
    """Return sentences `start` to `stop` of a block."""
    if start == 0 and stop == len(block.lengths):
        return block
    first = int(block.lengths[:start].sum())
    last = first + int(block.lengths[start:stop].sum())
    return TokenBlock(block.tokens[first:last], block.lengths[start:stop])
