"""Read and write lines of text: one sentence per line, UTF-8, optionally compressed."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.names import InvalidUtf8
from ds_seq.text.forms import Form, Lines, Text
from ds_seq.text.looks import Kind, is_no_text
from ds_seq.text.opening import decode_line, open_bytes
from ds_seq.text.scan import text_fingerprint

__all__ = [
    "STANDARD",
    "LineBlock",
    "PairPath",
    "check_counts",
    "check_writable",
    "count_pairs",
    "decode_line",
    "decode_lines",
    "open_bytes",
    "read_blocks",
    "read_buffers",
    "read_lines",
    "read_pairs",
    "read_parallel",
    "read_text",
    "text_fingerprint",
    "warn_of_lines",
    "write_lines",
]

STANDARD = "-"
"""Stands for standard input or output instead of a file."""

_MOST_NAMED_LINES = 10
_PAIRS_AT_ONCE = 10_000
_STANDARD_INPUT = Path("standard input")
_LINES = Lines()


@dataclass(frozen=True)
class PairPath:
    """The two sides of one parallel text, as a pair of files; or the one file of other text.

    Attributes:
        source: file of the source side.
        target: file of the target side; the same one if both sides are in one file, or if there is
            one side.
        form: how the sentences are written there.
        invalid: what happens to a pair with a side that is no UTF-8. `keep` leaves it to whoever
            decodes the lines: cleaning counts and drops it, others raise a `UserError`.
    """

    source: Path
    target: Path
    form: Form = _LINES
    invalid: InvalidUtf8 | Literal["keep"] = "keep"

    def __iter__(self) -> Iterator[Path]:
        """Yield the file of each side."""
        return iter((self.source, self.target)[: self.num_sides])

    def __getitem__(self, side: int) -> Path:
        """Return the file of a side."""
        return (self.source, self.target)[side]

    @classmethod
    def of(cls, *sides: Path) -> PairPath:
        """Return plain text with a file for each side, or of one side."""
        return cls(sides[0], sides[-1], Text() if len(sides) == 1 else _LINES)

    @property
    def num_sides(self) -> int:
        """2, or 1 for text that is no pairs."""
        return 1 if isinstance(self.form, Text) else 2

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(self))


class LineBlock(NamedTuple):
    """Consecutive lines of one `PairPath`, still as bytes and without line ends.

    Attributes:
        path: files that contain the lines.
        first_line: number of the first line, counted from 1.
        source: lines of the source side.
        target: the same number of lines of the target side; none in text of one side.
    """

    path: PairPath
    first_line: int
    source: list[bytes]
    target: list[bytes]

    @property
    def sides(self) -> tuple[list[bytes], ...]:
        """The lines of each side that the text has."""
        return (self.source, self.target)[: self.path.num_sides]


def decode_lines(block: LineBlock) -> tuple[list[str], ...]:
    """Decode each side of a block; see `decode_line`."""
    unit = block.path.form.unit
    return tuple(
        [
            decode_line(line, path, number, unit)
            for number, line in enumerate(lines, block.first_line)
        ]
        for path, lines in zip(block.path, block.sides, strict=True)
    )


def count_pairs(paths: Sequence[PairPath]) -> int:
    """Return the total number of pairs of all texts, those that are not UTF-8 included.

    Raises:
        UserError: a file is missing, or the two sides have different numbers of lines.
    """
    return sum(path.form.count(path.source, path.target) for path in paths)


def read_blocks(paths: Sequence[PairPath], size: int) -> Iterator[LineBlock]:
    r"""Yield the texts, one after the other, in blocks of at most `size` pairs.

    Lines end only at `\n`: other Unicode line breaks occur inside sentences, and splitting at them
    would misalign the two sides.

    Raises:
        UserError: a file is missing or not what its form says, the two sides have different numbers
            of lines, or, if the text says so, a line is not UTF-8.
    """
    for path in paths:
        number = path.form.first
        bad: list[int] = []
        for sides in path.form.blocks(path.source, path.target, size):
            block = LineBlock(path, number, *sides)
            number += len(sides[0])
            if path.invalid == "keep":
                yield block
            else:
                yield from _valid_blocks(block, bad)
        if bad:
            _warn_of_invalid(path, tuple(bad[:_MOST_NAMED_LINES]), len(bad))


def _valid_blocks(block: LineBlock, bad: list[int]) -> Iterator[LineBlock]:
    """Yield a block without invalid UTF-8; add the numbers of its pairs to `bad`."""
    wrong = sorted({row for side in block.sides for row in _invalid_rows(side)})
    if not wrong:
        yield block
        return
    if block.path.invalid == "stop":
        decode_lines(block)  # names the first
    bad += [block.first_line + row for row in wrong]
    if block.path.invalid == "replace":
        source, target = (
            [line.decode("utf-8", "replace").encode() for line in side]
            for side in (block.source, block.target)
        )
        yield LineBlock(block.path, block.first_line, source, target)
        return
    start = 0
    for row in [*wrong, len(block.source)]:  # lines of a block are consecutive
        if row > start:
            source, target = (side[start:row] for side in (block.source, block.target))
            yield LineBlock(block.path, block.first_line + start, source, target)
        start = row + 1


def _invalid_rows(lines: list[bytes]) -> list[int]:
    """Return the indices of the lines that are not UTF-8."""
    try:
        b"\n".join(lines).decode("utf-8")
    except UnicodeDecodeError:
        return [row for row, line in enumerate(lines) if not _is_valid(line)]
    return []


def _is_valid(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@cache
def _warn_of_invalid(path: PairPath, numbers: tuple[int, ...], total: int) -> None:
    """Warn once, although the references are read in every validation."""
    done = "left out" if path.invalid == "drop" else "repaired with U+FFFD"
    names = " and ".join(map(str, path.files))
    unit = path.form.unit
    warn_of_lines(f"pair(s) of {names} are not UTF-8 and were {done}", numbers, total, unit)


def read_pairs(path: PairPath) -> tuple[list[str], list[str]]:
    """Read both sides of a parallel text of any form.

    Raises:
        UserError: see `read_blocks`; or a line is not UTF-8.
    """
    source: list[str] = []
    target: list[str] = []
    for block in read_blocks([path], _PAIRS_AT_ONCE):
        for whole, part in zip((source, target), decode_lines(block), strict=True):
            whole += part
    return source, target


def read_text(path: PairPath) -> list[str]:
    """Read text of one side.

    Raises:
        UserError: see `read_blocks`; or a line is not UTF-8.
    """
    return [
        line for block in read_blocks([path], _PAIRS_AT_ONCE) for line in decode_lines(block)[0]
    ]


def read_lines(path: str | Path, *, tabs: bool = False) -> list[str]:
    """Read a text file, or standard input for `-`; compressed files are known by their suffix.

    Lines end only at `\\n`: other Unicode line breaks occur inside sentences, and splitting at them
    would misalign the text and its reference. A byte order mark is no part of the text.

    Args:
        path: the file.
        tabs: whether tabs may separate the parts of a line, so that a table is no mistake.

    Raises:
        UserError: the file does not exist or is no text, or a line is not UTF-8 (the message gives
            its number).
    """
    allowed: tuple[Kind, ...] = ("table",) if tabs else ()
    if str(path) == STANDARD:
        content, name = sys.stdin.buffer.read(), _STANDARD_INPUT
        if (problem := is_no_text(content, name, allowed=allowed)) is not None:
            raise UserError(problem)
    else:
        name = Path(path)
        with open_bytes(name, allowed=allowed) as file:
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


def warn_of_lines(
    what: str, numbers: Sequence[int], total: int | None = None, unit: str = "line"
) -> None:
    """Warn about lines on stderr, giving their numbers (from 1); do nothing if there are none.

    Args:
        what: what they are.
        numbers: the numbers, or the first of them.
        total: how many there are, if `numbers` are the first.
        unit: what is numbered.
    """
    total = len(numbers) if total is None else total
    if total:
        named = ", ".join(map(str, numbers[:_MOST_NAMED_LINES]))
        more = ", ..." if total > _MOST_NAMED_LINES else ""
        print(f"ds-seq: warning: {total} {what}; {unit}(s) {named}{more}", file=sys.stderr)
