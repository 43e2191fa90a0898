"""Finished lines of an incomplete output: in memory, or on disk until the output file is complete.

On disk, they are kept next to the output in the folder `OUTPUT.partial`: `settings.json` holds the
settings of the generation, and a journal per rank holds one record per finished batch, a line of
text::

    checksum [[number, best, output or null, cut, impossible], ...]

that consists of a hexadecimal CRC-32 and JSON. A kill leaves at most one incomplete record, the
last; it is cut off before the generation resumes. A damaged record costs the work of its batch.
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

_ADVICE = "stop that process first, or give another --output"


class Line(NamedTuple):
    """The translation of a line of the input."""

    number: int
    """Number of the line in the whole input, from 0."""
    best: str
    """The text of the best translation."""
    output: str
    """The output in the requested format: one line or several."""
    cut: bool
    """Whether the line was too long and was translated only in part or not at all."""
    impossible: bool = False
    """Whether no translation satisfies all constraints."""


class Store(Protocol):
    """Storage of finished lines."""

    def add(self, lines: Sequence[Line]) -> None:
        """Store the lines of a batch."""

    def gather(self) -> Iterable[Line] | None:
        """Return the lines of all ranks, in any order, on rank 0 and None on other ranks.

        A collective; nothing is added afterwards.
        """

    def close(self) -> None:
        """Close files; call it also after an error. Safe to call twice."""


class MemoryStore:
    """A `Store` in memory, which is lost with the process."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def add(self, lines: Sequence[Line]) -> None:
        """See the method of `Store`."""
        self._lines += lines

    def gather(self) -> Iterable[Line] | None:
        """See the method of `Store`."""
        shares = distributed.gather_objects(self._lines)
        return None if shares is None else [line for share in shares for line in share]

    def close(self) -> None:
        """See the method of `Store`."""


class PartialOutput:
    """The folder with the finished lines of an incomplete output file.

    Args:
        output: path of the output file.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self._settings = self.folder / "settings.json"
        self._lock: files.Lock | None = None

    def begin(self, settings: Settings, resume: bool) -> list[int]:
        """Start or resume the output, and lock it; called by one process only.

        Args:
            settings: all settings that affect the output; a resume requires the same.
            resume: whether to resume an earlier run.

        Returns:
            Numbers of the finished lines.

        Raises:
            UserError: there are finished lines but `resume` is False, they were made with other
                settings, another process uses the folder, or the folder cannot be written.
        """
        with files.writing(self.folder):
            if self._lock is None:
                self._lock = files.Lock(self.folder / files.LOCK_FILE, self.folder, _ADVICE)
            files.remove_leftovers(self.folder)
            for journal in self._journals():
                _repair(journal)
            done = [line.number for line in self.lines()]
            if done and not resume:
                raise UserError(
                    f"{self.folder}: holds {len(done):,} lines of a run that was not finished; "
                    "add --resume to continue it, or remove the folder"
                )
            if done:
                self._compare(settings)
            else:
                files.write_json(self._settings, settings)
        return done

    def _compare(self, new: Settings) -> None:
        if changed := files.changed_settings(self._settings, new):
            raise UserError(
                f"--resume: {self.folder} was begun with another {', '.join(changed)} (see its "
                f"{self._settings.name}); use the same, or remove the folder"
            )

    def store(self, rank: int) -> JournalStore:
        """Return the store of a rank's finished lines.

        Raises:
            UserError: another process uses the journal, or it cannot be written.
        """
        return JournalStore(self, self.folder / f"journal.{rank:05d}")

    def lines(self) -> Iterator[Line]:
        """Yield all finished lines of all ranks, from this run and earlier ones."""
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
        self._lock = files.Lock(files.lock_of(path), path, _ADVICE)
        try:
            with files.writing(path):
                # unbuffered, so that a record is written when `add` returns
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        except UserError:
            self._lock.release()
            raise

    def add(self, lines: Sequence[Line]) -> None:
        """Append the lines of a batch to the journal.

        Raises:
            UserError: the journal cannot be written, for example because the disk is full.
        """
        body = json.dumps(
            [
                [number, best, None if output == best else output, cut, impossible]
                for number, best, output, cut, impossible in lines
            ]
        ).encode()
        record = b"%08x %b\n" % (zlib.crc32(body), body)
        with files.writing(self._path):
            written = self._file.write(record)
            if written != len(record):  # a partial write
                self._file.write(record[written:])

    def gather(self) -> Iterable[Line] | None:
        """See the method of `Store`."""
        self.close()
        distributed.barrier()
        return self._partial.lines() if distributed.rank() == 0 else None

    def close(self) -> None:
        """See the method of `Store`; other processes may then write to the journal."""
        self._file.close()
        self._lock.release()


def _repair(journal: Path) -> None:
    """Cut off an incomplete record that a kill has left at the end."""
    with files.Lock(files.lock_of(journal), journal, _ADVICE), open(journal, "r+b") as file:
        file.truncate(max((end for _, end in _records(file)), default=0))


def _records(file: BinaryIO) -> Iterator[tuple[list[Line], int]]:
    """Yield the whole records, each with the offset of its end; what is none is skipped."""
    end = 0
    for row in file:
        end += len(row)
        checksum, _, body = row.partition(b" ")
        if body.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(body[:-1]):
            if (lines := _lines(body)) is not None:
                yield lines, end


def _lines(body: bytes) -> list[Line] | None:
    """Return the lines of a record, or None if it holds other values than a store writes."""
    lines = []
    try:
        for stored in json.loads(body):
            match stored:
                case [int(number), str(best), None | str() as output, bool(cut), bool(impossible)]:
                    text = best if output is None else output
                    lines.append(Line(number, best, text, cut, impossible))
                case _:
                    return None
    except (ValueError, TypeError, RecursionError):
        return None
    return None if any(line.number < 0 for line in lines) else lines
