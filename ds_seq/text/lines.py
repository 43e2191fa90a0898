"""Read and write lines of text: one sentence per line, UTF-8, optionally compressed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.records import unreadable
from ds_seq.text.looks import SAMPLE, is_no_text

STANDARD = "-"
"""Stands for standard input or output instead of a file."""

_MOST_NAMED_LINES = 10
_STANDARD_INPUT = Path("standard input")
_OPENERS: dict[str, Callable[..., object]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_BLOCK = 1 << 20
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


class PairPath(NamedTuple):
    """The two sides of one parallel text."""

    source: Path
    target: Path


class LineBlock(NamedTuple):
    """Consecutive lines of one `PairPath`, still as bytes and without line ends.

    Attributes:
        path: files that contain the lines.
        first_line: number of the first line, counted from 1.
        source: lines of the source side.
        target: the same number of lines of the target side.
    """

    path: PairPath
    first_line: int
    source: list[bytes]
    target: list[bytes]


class _Decompressed(io.RawIOBase):
    """Content of a compressed file; damage, which only shows on reading, raises `UserError`."""

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except _DAMAGED as error:
            raise UserError(
                f"{self._path}: cannot be decompressed ({error}); it is damaged or incomplete"
            ) from None

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path, *, tabs: bool = False) -> BinaryIO:
    """Open a text file for reading bytes; `.gz`, `.xz` and `.bz2` are decompressed.

    Args:
        path: the file.
        tabs: whether tabs may separate the parts of a line, so that a table is no mistake.

    Raises:
        UserError: the file does not exist, cannot be read, or is of a kind that has no lines of
            text. Reading from the returned file also raises it if a compressed file is damaged.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; {_explain_folder(path)}")
        opener = _OPENERS.get(path.suffix)
        raw: io.RawIOBase
        if opener is None:
            raw = io.FileIO(path)
        else:
            raw = _Decompressed(cast(io.BufferedIOBase, opener(path, "rb")), path)
    except FileNotFoundError:
        raise UserError(_explain_missing(path)) from None
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
    file = io.BufferedReader(raw, _BLOCK)
    try:
        problem = is_no_text(file.peek(SAMPLE), path, tabs=tabs)
        if problem is not None:
            raise UserError(problem)
    except UserError:
        file.close()
        raise
    return file


def _explain_folder(path: Path) -> str:
    names = sorted(item.name for item in islice(path.iterdir(), 1000) if item.is_file())
    return f"give one of its files, such as {path / names[0]}" if names else "give a text file"


def _explain_missing(path: Path) -> str:
    return f"{path}: no such file; check the path (data.raw in an experiment file)"


def decode_line(line: bytes, path: Path, number: int) -> str:
    """Decode a UTF-8 line.

    Raises:
        UserError: the line is not UTF-8; names the file and line.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: line {number}: invalid UTF-8 at byte {error.start + 1} of the line; "
            "convert the file to UTF-8 (for example with iconv) or remove the line on both sides"
        ) from None


def decode_lines(block: LineBlock) -> tuple[list[str], list[str]]:
    """Decode both sides of a block; see `decode_line`."""
    source, target = (
        [decode_line(line, path, number) for number, line in enumerate(lines, block.first_line)]
        for path, lines in zip(block.path, (block.source, block.target), strict=True)
    )
    return source, target


def count_pairs(paths: Sequence[PairPath]) -> int:
    """Return the total number of lines of all texts.

    Raises:
        UserError: a file is missing, or the two sides have different numbers of lines.
    """
    total = 0
    for path in paths:
        source, target = (_count_lines(side) for side in path)
        if source != target:
            raise UserError(_explain_unequal(path, source, target))
        total += source
    return total


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with open_bytes(path) as file:
        while block := file.read(_BLOCK):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _explain_unequal(path: PairPath, source: int, target: int) -> str:
    return (
        f"the two sides differ in the number of lines: {path.source} has {source:,}, "
        f"{path.target} has {target:,}; line n of one must translate line n of the other"
    )


def read_blocks(paths: Sequence[PairPath], size: int) -> Iterator[LineBlock]:
    """Yield the texts, one after the other, in blocks of at most `size` lines.

    Lines end only at `\\n`: other Unicode line breaks occur inside sentences, and splitting at them
    would misalign the two sides.

    Raises:
        UserError: a file is missing, or the two sides have different numbers of lines.
    """
    for path in paths:
        with open_bytes(path.source) as source, open_bytes(path.target) as target:
            number = 0
            while True:
                sources = [line.rstrip(b"\r\n") for line in islice(source, size)]
                targets = [line.rstrip(b"\r\n") for line in islice(target, size)]
                if len(sources) != len(targets):
                    rest = (sum(1 for _ in source), sum(1 for _ in target))
                    counts = (number + len(sources) + rest[0], number + len(targets) + rest[1])
                    raise UserError(_explain_unequal(path, *counts))
                if not sources:
                    break
                yield LineBlock(path, number + 1, sources, targets)
                number += len(sources)


def text_fingerprint(path: Path) -> str:
    """Return the `files.fingerprint` of a text.

    Raises:
        UserError: the file does not exist.
    """
    try:
        return files.fingerprint(path)
    except FileNotFoundError:
        raise UserError(_explain_missing(path)) from None
    except OSError as error:
        raise UserError(unreadable(path, error)) from None


def read_lines(path: str | Path, *, tabs: bool = False) -> list[str]:
    """Read a text file, or standard input for `-`; compressed files are known by their suffix.

    Lines end only at `\\n`: other Unicode line breaks occur inside sentences, and splitting at them
    would misalign the text and its reference. A byte order mark is no part of the text.

    Args:
        path: the file.
        tabs: see `open_bytes`.

    Raises:
        UserError: the file does not exist or is no text, or a line is not UTF-8 (the message gives
            its number).
    """
    if str(path) == STANDARD:
        content, name = sys.stdin.buffer.read(), _STANDARD_INPUT
        if (problem := is_no_text(content, name, tabs=tabs)) is not None:
            raise UserError(problem)
    else:
        name = Path(path)
        with open_bytes(name, tabs=tabs) as file:
            content = file.read()
    rows = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if rows[-1] == b"":  # the end of the last line, not another line
        rows.pop()
    return [decode_line(row.rstrip(b"\r"), name, number) for number, row in enumerate(rows, 1)]


def read_buffers(size: int) -> Iterator[list[str]]:
    """Yield standard input as it arrives, `size` lines at a time; the last buffer may be shorter.

    Raises:
        UserError: it is no text, or a line is not UTF-8 (the message gives its number).
    """
    first = 1
    while rows := list(islice(sys.stdin.buffer, size)):
        if first == 1 and (problem := is_no_text(b"".join(rows), _STANDARD_INPUT)) is not None:
            raise UserError(problem)
        yield [
            decode_line(row.rstrip(b"\r\n"), _STANDARD_INPUT, number)
            for number, row in enumerate(rows, first)
        ]
        first += len(rows)


def write_lines(path: str | Path, lines: Sequence[str]) -> None:
    """Write a text file atomically, or write to standard output for `-`.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    if str(path) == STANDARD:
        _write_standard(content)
        return
    files.write_bytes(path, content)


def _write_standard(content: bytes) -> None:
    """Write to standard output and flush, so that the reader of a pipe receives it immediately."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except OSError as error:
        # Otherwise flushing the rest of the buffer would fail again when the interpreter exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        reason = error.strerror or error
        raise UserError(f"standard output: cannot be written: {reason}") from None


def check_writable(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Check an output path before any work is done.

    Args:
        path: the output.
        inputs: files and folders that the command reads; see `files.check_not_input`.

    Raises:
        UserError: `write_lines` would fail, or would overwrite an input.
    """
    if str(path) == STANDARD:
        return
    files.check_not_input(path, (name for name in inputs if str(name) != STANDARD))
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{file}: is a folder; give the name of a file")
    if file.exists() and not file.is_file():  # it would be replaced instead of written to
        raise UserError(f"{file}: is a device or a pipe; omit --output and redirect to it")
    folder = file.parent
    if not folder.is_dir():
        raise UserError(f"{file}: no such folder {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{file}: folder {folder} cannot be written to")


def read_parallel(source: str | Path, target: str | Path) -> tuple[list[str], list[str]]:
    """Read two texts where line n of one is the translation of line n of the other."""
    sources, targets = read_lines(source), read_lines(target)
    check_counts(sources, source, targets, target)
    return sources, targets


def check_counts(
    sources: Sequence[str], source: str | Path, targets: Sequence[str], target: str | Path
) -> None:
    """Check that two texts have the same number of lines.

    Raises:
        UserError: they do not.
    """
    if len(sources) != len(targets):
        raise UserError(
            f"{source} has {len(sources):,} lines but {target} has {len(targets):,}; "
            "line n of one must be the translation of line n of the other"
        )


def warn_of_lines(what: str, numbers: Sequence[int]) -> None:
    """Warn about lines on stderr, giving their numbers (from 1); do nothing if there are none."""
    if numbers:
        named = ", ".join(map(str, numbers[:_MOST_NAMED_LINES]))
        more = ", ..." if len(numbers) > _MOST_NAMED_LINES else ""
        print(f"ds-seq: warning: {len(numbers)} {what}; line(s) {named}{more}", file=sys.stderr)
