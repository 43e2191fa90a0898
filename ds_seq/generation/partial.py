"""What is translated so far: in memory, or on disk until the output file is complete.

On disk it lies beside the output, in ``OUTPUT.partial``: ``settings.json`` says what was begun, and
a journal of each rank holds a record for each batch that is done, a line of text::

    checksum [[number, best, output or null, cut, impossible], ...]

with a CRC-32 in hexadecimal and JSON. A kill leaves at most one record that is not whole, the last;
it is cut off before the work goes on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ds_seq import distributed, files
from ds_seq.errors import UserError

Settings = Mapping[str, str | int | float]

_OPTION = "--output"


class Line(NamedTuple):
    """What becomes of a line of the input."""

    number: int
    """In the whole input, from 0."""
    best: str
    """The text of the best translation."""
    output: str
    """What is written for it, in the format that was asked for: one line or several."""
    cut: bool
    """Whether it was too long, and translated only in part or not at all."""
    impossible: bool = False
    """Whether nothing was found that all rules allow."""


class Store(Protocol):
    """Where the lines go that are done."""

    def add(self, lines: Sequence[Line]) -> None:
        """Keep the lines of a batch."""

    def gather(self) -> Iterable[Line] | None:
        """The lines of all ranks, in any order, on rank 0; None elsewhere. A collective, the last
        call."""


class MemoryStore:
    """A `Store` that ends with the process."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def add(self, lines: Sequence[Line]) -> None:
        """See `Store`."""
        self._lines += lines

    def gather(self) -> Iterable[Line] | None:
        """See `Store`."""
        shares = distributed.gather_objects(self._lines)
        return None if shares is None else [line for share in shares for line in share]


class PartialOutput:
    """The folder of an output file that is not complete.

    Args:
        output: the file.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self._settings = self.folder / "settings.json"

    def begin(self, settings: Settings, resume: bool) -> list[int]:
        """Begin, or go on with what was begun; by one process only.

        Args:
            settings: all on which the output depends; must be the same to go on.
            resume: whether to go on.

        Returns:
            Numbers of the lines that are done.

        Raises:
            UserError: there are lines that are done, but not to be gone on with, or of other
                settings; another process is at it; or nothing can be written.
        """
        try:
            for journal in self._journals():
                _repair(journal)
            done = [line.number for line in self.lines()]
            if done and not resume:
                raise UserError(
                    f"{self.folder}: holds {len(done):,} lines of a run that was not finished; "
                    "add --resume to go on with it, or remove the folder"
                )
            if done:
                self._compare(settings)
            else:
                self.folder.mkdir(exist_ok=True)
                files.write_json(self._settings, settings)
        except OSError as error:
            raise files.unwritable(self.folder, error) from None
        return done

    def _compare(self, new: Settings) -> None:
        if changed := files.changed_settings(self._settings, new):
            raise UserError(
                f"--resume: {self.folder} was begun with another {', '.join(changed)} (see "
                f"{self._settings.name} in it); give the same, or remove the folder"
            )

    def store(self, rank: int) -> JournalStore:
        """Where a rank keeps the lines that it has done.

        Raises:
            UserError: another process writes there, or nothing can be written.
        """
        return JournalStore(self, self.folder / f"journal.{rank:05d}")

    def lines(self) -> Iterator[Line]:
        """All lines that are done, by all ranks, in this run and before."""
        for journal in self._journals():
            with open(journal, "rb") as file:
                for record, _ in _records(file):
                    yield from record

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob("journal.*"))

    def remove(self) -> None:
        """Remove the folder."""
        files.remove_folder(self.folder)


class JournalStore:
    """A `Store` that survives a kill; see `PartialOutput.store`."""

    def __init__(self, partial: PartialOutput, path: Path) -> None:
        self._partial = partial
        self._path = path
        try:
            # without a buffer: a record is written when `add` returns
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `gather`)
        except OSError as error:
            raise files.unwritable(path, error) from None
        files.lock(self._file, path, _OPTION)

    def add(self, lines: Sequence[Line]) -> None:
        """See `Store`.

        Raises:
            UserError: the disk is full.
        """
        body = json.dumps(
            [
                [number, best, None if output == best else output, cut, impossible]
                for number, best, output, cut, impossible in lines
            ]
        ).encode()
        record = b"%08x %b\n" % (zlib.crc32(body), body)
        try:
            written = self._file.write(record)
            if written != len(record):  # the disk took only a part
                self._file.write(record[written:])
        except OSError as error:
            raise files.unwritable(self._path, error) from None

    def gather(self) -> Iterable[Line] | None:
        """See `Store`."""
        self._file.close()
        distributed.barrier()
        return self._partial.lines() if distributed.rank() == 0 else None


def _repair(journal: Path) -> None:
    """Cut off what a kill has left behind the last whole record."""
    with open(journal, "r+b") as file:
        files.lock(file, journal, _OPTION)
        file.truncate(max((end for _, end in _records(file)), default=0))


def _records(file: BinaryIO) -> Iterator[tuple[list[Line], int]]:
    """The records up to the first that is not whole, and where each ends."""
    end = 0
    for row in file:
        checksum, _, body = row.partition(b" ")
        if not body.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body[:-1]):
            return
        end += len(row)
        yield (
            [
                Line(number, best, best if output is None else output, cut, impossible)
                for number, best, output, cut, impossible in json.loads(body)
            ],
            end,
        )
