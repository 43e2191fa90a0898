"""Finished blocks on disk, so that cleaning resumes where it was killed.

A folder next to the output holds `work.json`, which says what is being cleaned, and two files for
each process that has ever written: `NAME.data`, block after block, and `NAME.index`, a line for
each finished block with its place and checksum there. A line is written after its data, so a kill
leaves at most data without a line, which the next start cuts off. Processes may come and go in any
number: who has cleaned a block makes no difference.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from ds_seq import files
from ds_seq.data.cleaning.block import Cleaned, clean_block, load_filters
from ds_seq.data.cleaning.blocks import Block
from ds_seq.data.cleaning.options import Corpus
from ds_seq.data.cleaning.report import Example, Examples
from ds_seq.errors import UserError
from ds_seq.records import read_json

_META = "work.json"
_INDEX, _DATA = ".index", ".data"


class Entry(NamedTuple):
    """A finished block.

    Attributes:
        number: number of the block.
        corpus: number of its corpus.
        input: number of its pair of files in the corpus.
        first_line: line of its first pair there.
        first_pair: number of this pair in the corpus.
        total: number of its pairs.
        dropped: number of dropped pairs by reason.
        name: journal that holds it.
        offset: its place there.
        sizes: bytes of its source side, its target side and its columns.
        checksum: CRC-32 of these bytes.
    """

    number: int
    corpus: int
    input: int
    first_line: int
    first_pair: int
    total: int
    dropped: dict[str, int]
    name: str
    offset: int
    sizes: tuple[int, int, int]
    checksum: int

    @property
    def kept(self) -> int:
        """Number of pairs that are left."""
        return self.total - sum(self.dropped.values())


class _Line(NamedTuple):
    """A line of an index."""

    entry: Entry
    examples: dict[str, list[Example]]


@cache
def _line() -> TypeAdapter[_Line]:
    return TypeAdapter(_Line)


class Finished(NamedTuple):
    """What is finished.

    Attributes:
        entries: finished blocks by number.
        examples: examples of dropped pairs by corpus.
    """

    entries: dict[int, Entry]
    examples: dict[int, Examples]

    def add(self, entry: Entry, examples: Mapping[str, Sequence[Example]]) -> Examples:
        """Add a block; return its examples that are small enough so far."""
        self.entries[entry.number] = entry
        return self.examples.setdefault(entry.corpus, Examples()).update_from(examples)


def open_work(folder: Path, made_of: Mapping[str, Any]) -> tuple[Finished, int]:
    """Open or create the folder of unfinished work, for a single process.

    Work on other text, or with other options, is removed.

    Args:
        folder: the folder.
        made_of: what is being cleaned, as JSON has it.

    Returns:
        What is finished, and the number of this attempt, from 0 on.

    Raises:
        UserError: the folder cannot be read or written.
    """
    try:
        known = read_json(folder / _META, dict[str, Any], "")
    except (FileNotFoundError, UserError):
        known = None
    finished = Finished({}, {})
    if known != made_of:
        with files.writing(folder):
            files.remove(folder)
        files.write_json(folder / _META, made_of)
        return finished, 0
    attempt = 0
    with files.writing(folder):
        for index in sorted(folder.glob(f"*{_INDEX}")):
            attempt = max(attempt, int(index.name.partition(".")[0]) + 1)
            _recover(folder, index, finished)
    return finished, attempt


def _recover(folder: Path, index: Path, finished: Finished) -> None:
    """Read the blocks of a journal; cut off what is behind the last whole one."""
    data = index.with_suffix(_DATA)
    end, used = 0, 0
    if data.exists():
        with open(data, "rb") as content:
            for line in index.read_bytes().splitlines(keepends=True):
                found = _parse(line)
                if found is None or found.entry.offset != end:
                    break
                entry = found.entry
                if zlib.crc32(content.read(sum(entry.sizes))) != entry.checksum:
                    break
                finished.add(entry, found.examples)
                end += sum(entry.sizes)
                used += len(line)
        os.truncate(data, end)
    os.truncate(index, used)
    if not used:
        index.unlink()
        data.unlink(missing_ok=True)


def _parse(line: bytes) -> _Line | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return _line().validate_json(line)
    except ValidationError:
        return None


def discard_work(folder: Path) -> None:
    """Remove the folder of unfinished work."""
    with files.writing(folder):
        files.remove(folder)


def is_worth_keeping(folder: Path) -> bool:
    """Return whether there is a finished block in a folder of unfinished work."""
    return any(index.stat().st_size for index in folder.glob(f"*{_INDEX}"))


class JournalWriter:
    """Cleans blocks, and writes them to a journal of the process that it is in.

    Args:
        corpora: the corpora.
        folder: folder of the work, which exists.
        attempt: number of the attempt, see `open_work`.
    """

    def __init__(self, corpora: Sequence[Corpus], folder: Path, attempt: int) -> None:
        self._made_of = (corpora, folder, attempt)
        self._journal: Journal | None = None

    def __reduce__(self) -> tuple[type[JournalWriter], tuple[Any, ...]]:
        return JournalWriter, self._made_of

    def load(self) -> None:
        """Load what the filters of all corpora need, once in each process."""
        load_filters(self._made_of[0])

    def clean(self, block: Block) -> tuple[Entry, Examples]:
        """Clean and write a block; see `clean_block` and `Journal.add`."""
        corpora, folder, attempt = self._made_of
        if self._journal is None:
            self._journal = Journal(folder, attempt)
        return self._journal.add(clean_block(corpora, block))


class Journal:
    """Appends finished blocks to files of its own.

    Args:
        folder: folder of the work, which exists.
        attempt: number of the attempt, see `open_work`.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder = folder
        self._name = f"{attempt:04}.{os.getpid()}@{files.host()}"
        self._offset = 0
        self._finished = Finished({}, {})
        with files.writing(folder):
            for end in (_DATA, _INDEX):
                open(folder / f"{self._name}{end}", "xb").close()

    def add(self, cleaned: Cleaned) -> tuple[Entry, Examples]:
        """Append a block; return its entry, and its examples that are small enough so far.

        Raises:
            UserError: it cannot be written.
        """
        content = cleaned.source + cleaned.target + cleaned.columns
        sizes = (len(cleaned.source), len(cleaned.target), len(cleaned.columns))
        entry = Entry(
            cleaned.number, cleaned.corpus, *cleaned.place, cleaned.total, cleaned.dropped,
            self._name, self._offset, sizes, zlib.crc32(content),
        )  # fmt: skip
        examples = self._finished.add(entry, cleaned.examples)
        line = json.dumps([entry, examples]).encode() + b"\n"
        with files.writing(self._folder):
            self._append(_DATA, content)
            self._append(_INDEX, line)
        self._offset += len(content)
        return entry, examples

    def _append(self, end: str, content: bytes) -> None:
        # closed after each block: only then network file systems show it to other machines
        with open(self._folder / f"{self._name}{end}", "ab", buffering=0) as file:
            view = memoryview(content)
            while view:  # a single call may write less, on a disk that is getting full
                view = view[file.write(view) :]


def read_parts(
    folder: Path, entries: Sequence[Entry], text: bool
) -> Iterator[tuple[Entry, bytes, bytes, bytes]]:
    """Yield blocks with their source side, target side and columns, in the order of `entries`.

    Args:
        folder: folder of the work.
        entries: finished blocks.
        text: whether the sides are needed; otherwise they are empty.

    Raises:
        UserError: a journal has changed meanwhile.
    """
    opened: dict[str, Any] = {}
    try:
        for entry in entries:
            if entry.name not in opened:
                opened[entry.name] = open(folder / f"{entry.name}{_DATA}", "rb")
            file = opened[entry.name]
            source, target, columns = entry.sizes
            file.seek(entry.offset if text else entry.offset + source + target)
            content = file.read(source + target + columns if text else columns)
            if text and zlib.crc32(content) != entry.checksum:
                raise UserError(
                    f"{folder}: {entry.name}{_DATA} has changed since it was written; remove the "
                    "folder and start again"
                )
            sides = source + target if text else 0
            yield entry, content[: source if text else 0], content[source:sides], content[sides:]
    finally:
        for file in opened.values():
            file.close()
