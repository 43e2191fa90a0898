"""Raw text in and out: one sentence a line, UTF-8."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_seq.data.text import decode_line, open_bytes
from ds_seq.errors import UserError

STANDARD = "-"
"""Names standard input or output instead of a file."""


def read_lines(path: str | Path) -> list[str]:
    """Read a text file, or standard input for ``-``; compressed files by their suffix.

    Lines end at ``\\n`` only: other characters that Unicode calls line breaks occur inside
    sentences, and splitting there would shift the text against its reference.

    Raises:
        UserError: there is no such file, or a line is not UTF-8 (named by its number).
    """
    if str(path) == STANDARD:
        content, name = sys.stdin.buffer.read(), Path("standard input")
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


def write_lines(path: str | Path, lines: Sequence[str]) -> None:
    """Write a text file, or to standard output for ``-``; the file appears whole or not at all."""
    content = "".join(f"{line}\n" for line in lines).encode()
    if str(path) == STANDARD:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    file = Path(path)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Refuse an output path that `write_lines` would fail at, before any work is done."""
    if str(path) == STANDARD:
        return
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{file}: is a folder; give the name of a file")
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
