"""Raw text in and out: one sentence a line, UTF-8."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ds_seq.data.text import decode_line, open_bytes
from ds_seq.errors import UserError

STANDARD = "-"
"""Names standard input or output instead of a file."""

_MOST_NAMED_LINES = 10
_STANDARD_INPUT = Path("standard input")


def read_lines(path: str | Path) -> list[str]:
    """Read a text file, or standard input for ``-``; compressed files by their suffix.

    Lines end at ``\\n`` only: other characters that Unicode calls line breaks occur inside
    sentences, and splitting there would shift the text against its reference.

    Raises:
        UserError: there is no such file, or a line is not UTF-8 (named by its number).
    """
    if str(path) == STANDARD:
        content, name = sys.stdin.buffer.read(), _STANDARD_INPUT
    else:
        name = Path(path)
        if not name.exists():
            raise UserError(f"{path}: no such file")
        with open_bytes(name) as file:
            content = file.read()
    rows = content.split(b"\n")
    if rows[-1] == b"":  # the last line's end, not one more line
        rows.pop()
    return [decode_line(row.rstrip(b"\r"), name, number) for number, row in enumerate(rows, 1)]


def read_buffers(size: int) -> Iterator[list[str]]:
    """Read standard input as it comes, ``size`` lines at a time; the last buffer may be shorter.

    Raises:
        UserError: a line is not UTF-8 (named by its number).
    """
    first = 1
    while rows := list(islice(sys.stdin.buffer, size)):
        yield [
            decode_line(row.rstrip(b"\r\n"), _STANDARD_INPUT, number)
            for number, row in enumerate(rows, first)
        ]
        first += len(rows)


def write_lines(path: str | Path, lines: Sequence[str]) -> None:
    """Write a text file, or to standard output for ``-``; the file appears whole or not at all.

    Raises:
        UserError: it cannot be written, because the disk is full, say.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    if str(path) == STANDARD:
        _write_standard(content)
        return
    file = Path(path)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except OSError as error:
        raise explain_unwritable(file, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_standard(content: bytes) -> None:
    """Write to standard output at once, so that a reader at the other end of a pipe sees it."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise explain_unwritable("standard output", error) from None


def explain_unwritable(path: str | Path, error: OSError) -> UserError:
    """What to tell of a failed write."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


def check_writable(path: str | Path) -> None:
    """Refuse an output path that `write_lines` would fail at, before any work is done."""
    if str(path) == STANDARD:
        return
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{file}: is a folder; give the name of a file")
    if file.exists() and not file.is_file():  # it would be replaced, not written to
        raise UserError(f"{file}: is a device or a pipe; leave --output out and redirect to it")
    folder = file.parent
    if not folder.is_dir():
        raise UserError(f"{file}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{file}: folder {folder} cannot be written to")


def read_parallel(source: str | Path, target: str | Path) -> tuple[list[str], list[str]]:
    """Read two texts of which line n of one translates line n of the other."""
    sources, targets = read_lines(source), read_lines(target)
    check_counts(sources, source, targets, target)
    return sources, targets


def check_counts(
    sources: Sequence[str], source: str | Path, targets: Sequence[str], target: str | Path
) -> None:
    """Refuse two texts of unequal length."""
    if len(sources) != len(targets):
        raise UserError(
            f"{source} has {len(sources):,} lines but {target} has {len(targets):,}; "
            "line n of one must be the translation of line n of the other"
        )


def warn_of_lines(what: str, numbers: Sequence[int]) -> None:
    """Say something on stderr about lines, by their numbers from 1, if there are any."""
    if numbers:
        named = ", ".join(map(str, numbers[:_MOST_NAMED_LINES]))
        more = ", ..." if len(numbers) > _MOST_NAMED_LINES else ""
        print(f"ds-seq: warning: {len(numbers)} {what}; line(s) {named}{more}", file=sys.stderr)
