"""Alignments of tokens next to the shards of a split.

`train.align.bin` and `train.align.idx` have fairseq's format (`ds_seq.data.fairseq_files`): for
each pair, source and target token of each link in turn, counted from 0. `train.align.json` says
which shards they belong to, and has their checksums; it is written last. A pair without links is
empty.

Shapes: N sentence pairs, L links of a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ds_seq import files
from ds_seq.data.fairseq_files import IndexedFile
from ds_seq.data.fairseq_write import IndexedWriter, indexed_writer
from ds_seq.data.source import Source, TokenBlock
from ds_seq.errors import UserError
from ds_seq.records import Count, inside, parse_json, read_limited, record

_REMAKE = "run `ds-seq prepare` again"


@record
class AlignmentRecord(TypedDict):
    """Content of `<split>.align.json`: fingerprint of the shards, and of the two files."""

    version: int
    shards: str
    pairs: Count
    links: Count
    files: dict[str, str]
    made_from: list[str]
    """SHA-256 of the alignments of words that these were made from."""


def alignment_path(folder: str | Path, split: str) -> Path:
    """Return the path of the files of a split, without the suffix."""
    return Path(folder) / f"{split}.align"


def has_alignments(folder: str | Path, split: str) -> bool:
    """Return whether a split has alignments."""
    return _record_path(folder, split).is_file()


def _record_path(folder: str | Path, split: str) -> Path:
    path = alignment_path(folder, split)
    return path.with_name(f"{path.name}.json")


def links_block(pairs: Iterable[Iterable[tuple[int, int]]]) -> TokenBlock:
    """Return links as the numbers that are stored."""
    return TokenBlock.of([[place for link in links for place in link] for links in pairs])


class AlignmentWriter:
    """Collects the links of the pairs of a split; see `writing_alignments`."""

    def __init__(self, writer: IndexedWriter) -> None:
        self._writer = writer
        self.pairs = self.links = 0

    def add(self, block: TokenBlock) -> None:
        """Append the links of some pairs, as `links_block` returns them."""
        self._writer.add(block)
        self.pairs += len(block.lengths)
        self.links += len(block.tokens) // 2


@contextmanager
def writing_alignments(
    folder: str | Path, split: str, source: Source, made_from: Sequence[str] = ()
) -> Iterator[AlignmentWriter]:
    """Write the alignments of a split, which appear only if the block succeeds.

    Args:
        folder: folder of the shards.
        split: name of the split.
        source: the shards.
        made_from: SHA-256 of what they are made from, for `are_current`.

    Raises:
        UserError: a file cannot be written.
    """
    path = alignment_path(folder, split)
    remove_alignments(folder, split)
    with indexed_writer(path, None) as inner:
        writer = AlignmentWriter(inner)
        yield writer
        assert writer.pairs == len(source), f"{writer.pairs} of {len(source)} pairs"
    names = [path.with_name(f"{path.name}{suffix}") for suffix in (".bin", ".idx")]
    content: AlignmentRecord = {
        "version": 1,
        "shards": source.fingerprint,
        "pairs": writer.pairs,
        "links": writer.links,
        "files": {name.name: files.fingerprint(name) for name in names},
        "made_from": list(made_from),
    }
    files.write_bytes(_record_path(folder, split), files.sealed_json(content))


def remove_alignments(folder: str | Path, split: str) -> None:
    """Remove the alignments of a split, if there are any; those of other shards mislead."""
    path = alignment_path(folder, split)
    with files.writing(path.parent):
        for suffix in (".json", ".idx", ".bin"):
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def are_current(
    folder: str | Path, split: str, source: Source, made_from: Sequence[str] = ()
) -> bool:
    """Return whether a split has alignments made from this, which belong to its shards."""
    try:
        AlignmentReader(folder, split, source)
        return _read_record(folder, split)["made_from"] == list(made_from)
    except UserError:
        return False


def check_alignments(folder: str | Path, split: str) -> None:
    """Compare the files of a split with their checksums.

    Raises:
        UserError: they are missing or damaged.
    """
    _check_files(_record_path(folder, split), _read_record(folder, split), full=True)


def _read_record(folder: str | Path, split: str) -> AlignmentRecord:
    path = _record_path(folder, split)
    try:
        content = read_limited(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; name the alignments of the text (`alignments` of each corpus) "
            f"and {_REMAKE}"
        ) from None
    if not files.is_sealed(content):
        raise UserError(f"{path}: is damaged; {_REMAKE}")
    return parse_json(content, AlignmentRecord, path, _REMAKE)


def _check_files(path: Path, found: AlignmentRecord, full: bool) -> None:
    for name, sha256 in found["files"].items():
        file = inside(path.parent, Path(name).name)
        size = file.stat().st_size if file.is_file() else 0
        is_checked = full or size <= files.CHECKED_AT_LOAD
        if is_checked and files.check_file(file, size, sha256) is not None:
            raise UserError(f"{file}: is missing, or its content has changed; {_REMAKE}")


class AlignmentReader:
    """The links of the pairs of a split, mapped into memory. A task reads them by `gather`.

    Args:
        folder: folder of the shards.
        split: name of the split.
        source: the shards.

    Raises:
        UserError: there are none, they are damaged, or belong to other shards.
    """

    def __init__(self, folder: str | Path, split: str, source: Source) -> None:
        path, found = _record_path(folder, split), _read_record(folder, split)
        if found["shards"] != source.fingerprint:
            raise UserError(f"{path}: belongs to other shards than those of {split}; {_REMAKE}")
        self._file = IndexedFile(alignment_path(folder, split))
        _check_files(path, found, full=False)
        if len(self._file) != len(source):
            raise UserError(
                f"{path}: has {len(self._file):,} alignments, but {split} {len(source):,} pairs; "
                f"{_REMAKE}"
            )

    def __len__(self) -> int:
        return len(self._file)

    def block(self, indices: NDArray[np.integer]) -> TokenBlock:
        """Return the stored numbers of some pairs (N,), N >= 1."""
        return self._file.gather(indices)

    def gather(self, indices: NDArray[np.integer]) -> list[NDArray[np.int64]]:
        """Return the links (L, 2) of each of some pairs (N,), N >= 1: source and target token."""
        tokens, lengths = self.block(indices)
        return [part.reshape(-1, 2) for part in np.split(tokens, np.cumsum(lengths)[:-1])]
