"""Recognize files that are no lines of UTF-8 text, and say how to make text of them."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Literal

SAMPLE = 1 << 16
"""Number of bytes at the start of a file to look at."""

Kind = Literal["table", "json", "xml", "utf16"]
"""Kinds of files that are no lines of text, and may be meant."""

_TO_UTF8 = "convert it: iconv -f {} -t UTF-8 FILE > NEW"
_SUFFIX = "give it the suffix .{}, or decompress it: {} -dc FILE > NEW"
_UTF16 = "UTF-16 text"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", _SUFFIX.format("zst", "zstd")),
    (b"\x04\x22\x4d\x18", "a file compressed by lz4", "decompress it: lz4 -d FILE NEW"),
    (b"\x1f\x8b", "a file compressed by gzip", _SUFFIX.format("gz", "gzip")),
    (b"\xfd7zXZ\x00", "a file compressed by xz", _SUFFIX.format("xz", "xz")),
    (b"BZh", "a file compressed by bzip2", _SUFFIX.format("bz2", "bzip2")),
    (b"PK\x03\x04", "a zip archive or an office document", "export plain text from it"),
    (b"PAR1", "a Parquet table", "write its text as JSON lines, which data.raw can name"),
    (b"ARROW1", "an Arrow table", "write its text as JSON lines, which data.raw can name"),
    (b"%PDF-", "a PDF document", "export plain text from it"),
    (b"SQLite format 3\x00", "an SQLite database", "write its text to files, one per language"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", _TO_UTF8.format("UTF-32")),
    (b"\x00\x00\xfe\xff", "UTF-32 text", _TO_UTF8.format("UTF-32")),
    (b"\xff\xfe", _UTF16, _TO_UTF8.format("UTF-16")),
    (b"\xfe\xff", _UTF16, _TO_UTF8.format("UTF-16")),
)
_MARKUP = (
    b"<?xml",
    b"<!doctype",
    b"<html",
    b"<tmx",
    b"<srcset",
    b"<refset",
    b"<tstset",
    b"<mteval",
)
_BOMS_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD_LINES = 10
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\[\{"|\[\s*\n\s*[\[{"]|\{\s*\n\s*")')
"""Start of an array of objects, or of an array or an object over several lines."""
_TABLES = (".tsv", ".tab")
_COMMAS = ".csv"
_CUT = (
    "data.raw takes {tsv: FILE, columns: [1, 2]}; elsewhere, cut the text out: cut -f 1 FILE > NEW"
)
_TAR_MAGIC = slice(257, 262)
_FEWEST_ROWS = 5
"""Number of lines with equally many tabs that make a table of a file with another suffix."""


def is_no_text(head: bytes, path: Path, *, allowed: tuple[Kind, ...] = ()) -> str | None:
    """Return what a file looks like and what to do, if it is no text with a sentence per line.

    Args:
        head: start of the file, after decompression; at most `SAMPLE` bytes are looked at.
        path: the file, or its name for messages.
        allowed: kinds of files that are no mistake.

    Returns:
        The message; None for text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]  # of x.tsv.gz, too
    table = next((suffix for suffix in suffixes if suffix in (*_TABLES, _COMMAS)), "")
    found = _kind(head[:SAMPLE], len(head) > SAMPLE, table, allowed)
    if found is None:
        return None
    kind, advice = found
    if path.is_file():  # not for standard input
        advice = advice.replace("FILE", shlex.quote(str(path)))
    return f"{path}: looks like {kind}; {advice}"


def _kind(
    head: bytes, is_cut: bool, table: str, allowed: tuple[Kind, ...]
) -> tuple[str, str] | None:
    """Return the kind of a file that is no text, and what to do about it."""
    if "utf16" in allowed and head.startswith(_BOMS_UTF16):
        return None
    if (binary := _binary_kind(head)) is not None:
        return binary
    if (kind := _other_lines(head, allowed)) is not None:
        return kind
    lines = [line.strip(b"\r") for line in head.split(b"\n")]
    if is_cut:
        lines.pop()  # incomplete
    lines = [line for line in lines if line.strip()]
    if not lines:
        return None
    first = lines[0].removeprefix(b"\xef\xbb\xbf").lower()
    if "xml" not in allowed and first.startswith(_MARKUP):
        return _xml_kind(b"\n".join(lines[:_HEAD_LINES]).lower())
    if "json" not in allowed and (keys := _json_keys(lines)) is not None:
        key = keys[0] if keys else "KEY"
        advice = (
            f"data.raw takes {{jsonl: FILE, keys: {_pair_of(keys)}}}; elsewhere, take the text "
            f"out: jq -r '.\"{key}\"' FILE > NEW"
        )
        return f"JSON lines with the keys {', '.join(keys) or '(none)'}", advice
    columns = 0 if "table" in allowed else _num_columns(lines, table)
    if columns:
        how = "write its columns of text to files" if table == _COMMAS else _CUT
        return f"a table of {columns} columns", how
    return None


def _pair_of(keys: list[str]) -> str:
    return f"[{', '.join(keys[:2] if len(keys) > 1 else ('SOURCE', 'TARGET'))}]"


def _xml_kind(head: bytes) -> tuple[str, str]:
    """Return the kind of an XML or HTML file by its first lines."""
    if b"<tmx" in head:
        return "a translation memory", "data.raw takes {tmx: FILE}"
    if any(tag in head for tag in (b"<srcset", b"<refset", b"<tstset", b"<mteval")):
        return "a test set of WMT or IWSLT", "give it the suffix .sgm, which data.raw takes"
    if b"<dataset" in head and b"<collection" in head:
        return "a test set of WMT", "data.raw takes {xml: FILE}"
    return "XML or HTML", "extract its sentences to a file, one per line"


def _binary_kind(head: bytes) -> tuple[str, str] | None:
    """Return the kind of a file that is not UTF-8, and what to do about it."""
    for magic, kind, advice in _MAGIC:
        if head.startswith(magic):
            return kind, advice
    if head[_TAR_MAGIC] == b"ustar":
        return "a tar archive", "unpack it: tar -xf FILE"
    if head.count(0) * 8 <= len(head):
        return None
    even, odd = (head[start::2].count(0) for start in (0, 1))
    if max(even, odd) > 2 * min(even, odd):  # the upper bytes of Latin letters
        return _UTF16, _TO_UTF8.format("UTF-16BE" if even > odd else "UTF-16LE")
    return "a binary file", "give a text file, one sentence per line, in UTF-8"


def _other_lines(head: bytes, allowed: tuple[Kind, ...]) -> tuple[str, str] | None:
    """Return the kind of a text whose lines or items do not end with a line feed."""
    if "xml" in allowed:  # where line ends mean nothing
        return None
    if b"\n" not in head and head.rstrip(b"\r").count(b"\r") > 0:
        kind = "text whose lines end with a carriage return"
        return kind, r"convert it: tr '\r' '\n' < FILE > NEW"
    if _JSON.match(head) and "json" in allowed:
        return "JSON, but not one object per line", "write it so: jq -c '.[]' FILE > NEW"
    if _JSON.match(head):
        return "JSON", "write its sentences to a file, one per line, for example with jq -r"
    return None


def _json_keys(lines: list[bytes]) -> list[str] | None:
    """Return the keys of the first object if every line is a JSON object, else None."""
    keys: list[str] | None = None
    for line in lines[:20]:
        if not (line.startswith(b"{") and line.rstrip().endswith(b"}")):
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if keys is None:
            keys = [key[:40] for key in row if key.isprintable()][:10]
    return keys


def _num_columns(lines: list[bytes], table: str) -> int:
    """Return the number of columns of a table; 0 for text."""
    if table == _COMMAS:
        # a null byte is an error of the module csv before Python 3.11
        rows = csv.reader(line.decode(errors="replace").replace("\0", "") for line in lines)
        counts = {len(row) - 1 for row in rows}
    else:
        counts = {line.count(b"\t") for line in lines}
    if len(counts) > 1 or counts == {0}:
        return 0
    return counts.pop() + 1 if table or len(lines) >= _FEWEST_ROWS else 0
