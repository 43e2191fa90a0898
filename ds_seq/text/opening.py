"""Open text files, plain or compressed, and decode their lines."""

from __future__ import annotations

import codecs
import io
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ds_seq.errors import UserError
from ds_seq.names import COMPRESSED
from ds_seq.records import unreadable
from ds_seq.text.compression import Decompressed
from ds_seq.text.looks import SAMPLE, Kind, is_no_text

BLOCK = 1 << 20
"""Number of bytes that are read at once."""


def open_bytes(path: Path, *, allowed: tuple[Kind, ...] = ()) -> BinaryIO:
    """Open a text file for reading bytes; files with a suffix of `COMPRESSED` are decompressed.

    A byte order mark of UTF-8 is no part of the text.

    Args:
        path: the file.
        allowed: kinds of files that are no mistake, although they are no lines of text.

    Raises:
        UserError: the file does not exist, cannot be read, or is of a kind that has no lines of
            text. Reading from the returned file also raises it if a compressed file is damaged.
    """
    raw: io.RawIOBase
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; {_explain_folder(path)}")
        raw = Decompressed(path) if path.suffix in COMPRESSED else io.FileIO(path)
    except FileNotFoundError:
        raise UserError(explain_missing(path)) from None
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
    file = io.BufferedReader(raw, BLOCK)
    try:
        head = file.peek(SAMPLE)
        problem = is_no_text(head, path, allowed=allowed)
        if problem is not None:
            raise UserError(problem)
        if head.startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
    except UserError:
        file.close()
        raise
    return file


def _explain_folder(path: Path) -> str:
    names = sorted(item.name for item in islice(path.iterdir(), 1000) if item.is_file())
    return f"give one of its files, such as {path / names[0]}" if names else "give a text file"


def explain_missing(path: Path) -> str:
    """Return the message for a file that does not exist."""
    return f"{path}: no such file; check the path (data.raw in an experiment file)"


def decode_line(line: bytes, path: Path, number: int, unit: str = "line") -> str:
    """Decode a UTF-8 line.

    Args:
        line: the line.
        path: file that contains it.
        number: its number, from 1.
        unit: what is numbered.

    Raises:
        UserError: the line is not UTF-8; names the file and line.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: {unit} {number}: invalid UTF-8 at byte {error.start + 1} of the {unit}; "
            f"convert the file to UTF-8 (for example with iconv) or remove the {unit} on both sides"
        ) from None
