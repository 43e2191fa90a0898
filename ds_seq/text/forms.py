"""The forms in which people keep parallel text, and how the pairs are read from each.

A form knows how sentences are written in files, not which files these are. All of them give blocks
of two equally long lists of bytes, so whoever reads text need not know of forms. A line break in a
sentence, which JSON and XML can express, becomes a space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ds_seq.errors import UserError
from ds_seq.text.looks import Kind
from ds_seq.text.opening import BLOCK, open_bytes
from ds_seq.text.scan import is_compressed, known_scan

Sides = tuple[list[bytes], list[bytes]]


class Form(Protocol):
    """How the sentences of a parallel text are written in its files."""

    unit: ClassVar[str]
    """What a pair is numbered by: its line, or its segment in XML."""

    @property
    def first(self) -> int:
        """Number of the first pair."""

    def part(self, side: int) -> str:
        """Return which part of its file a side (0: source, 1: target) is; empty: all of it."""

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        """Yield the pairs in blocks of at most `size`; a side that ends early is a `UserError`."""

    def count(self, source: Path, target: Path) -> int:
        """Return the number of pairs."""


class _TwoFiles:
    """A form in which a side is a whole file."""

    first: ClassVar[int] = 1

    def part(self, side: int) -> str:
        return ""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:  # the same in every process: unfinished work is known by it
        return f"{type(self).__name__}()"


class Lines(_TwoFiles):
    r"""Two files with one sentence per line.

    Lines end only at `\n`: other Unicode line breaks occur inside sentences, and splitting at them
    would misalign the two sides.
    """

    unit: ClassVar[str] = "line"

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        with open_bytes(source) as source_file, open_bytes(target) as target_file:
            number = 0
            while True:
                sources, targets = (
                    [line.rstrip(b"\r\n") for line in islice(file, size)]
                    for file in (source_file, target_file)
                )
                number += len(sources)
                if len(sources) != len(targets):
                    rest = (sum(1 for _ in source_file), sum(1 for _ in target_file))
                    others = number - len(sources) + len(targets)
                    raise _unequal(source, number + rest[0], target, others + rest[1], self.unit)
                if not sources:
                    return
                yield sources, targets

    def count(self, source: Path, target: Path) -> int:
        counts = count_lines(source), count_lines(target)
        if counts[0] != counts[1]:
            raise _unequal(source, counts[0], target, counts[1], self.unit)
        return counts[0]


class Text(_TwoFiles):
    """One file of text of one side, a sentence or a paragraph per line; the target is empty."""

    unit: ClassVar[str] = "line"

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        with open_bytes(source) as file:
            while lines := [line.rstrip(b"\r\n") for line in islice(file, size)]:
                yield lines, []

    def count(self, source: Path, target: Path) -> int:
        return count_lines(source)


def count_lines(path: Path, allowed: tuple[Kind, ...] = ()) -> int:
    """Return the number of lines of a file, the last of which need not have an end."""
    lines, last = 0, b"\n"
    with open_bytes(path, allowed=allowed) as file:
        if not is_compressed(path) and (scan := known_scan(path)) is not None:
            return scan.lines
        while block := file.read(BLOCK):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _unequal(source: Path, sources: int, target: Path, targets: int, unit: str) -> UserError:
    return UserError(
        f"the two sides differ in the number of {unit}s: {source} has {sources:,}, "
        f"{target} has {targets:,}; {unit} n of one must translate {unit} n of the other"
    )


@dataclass(frozen=True)
class Table:
    """One file with both sides in columns that are separated by tabs; nothing is quoted.

    Attributes:
        columns: numbers of the columns of source and target, from 1.
        header: whether the first line is none of the text.
    """

    columns: tuple[int, int]
    header: bool
    unit: ClassVar[str] = "line"

    @property
    def first(self) -> int:
        """Number of the first pair."""
        return 1 + self.header

    def part(self, side: int) -> str:
        """Return the column of a side."""
        return f"column {self.columns[side]}{' after a header' if self.header else ''}"

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        """See `Form`."""
        first, second = (column - 1 for column in self.columns)
        number = self.first
        with open_bytes(source, allowed=("table",)) as file:
            rows = islice(file, int(self.header), None)
            while lines := list(islice(rows, size)):
                table = [line.rstrip(b"\r\n").split(b"\t") for line in lines]
                try:
                    yield [row[first] for row in table], [row[second] for row in table]
                except IndexError:
                    self._complain(source, number, table)
                number += len(lines)

    def _complain(self, path: Path, number: int, table: list[list[bytes]]) -> None:
        needed = max(self.columns)
        at, row = next((n, row) for n, row in enumerate(table, number) if len(row) < needed)
        raise UserError(
            f"{path}: line {at} has {len(row)} column(s), but column {needed} is wanted (columns: "
            f"{list(self.columns)}); columns are separated by tabs and counted from 1"
        )

    def count(self, source: Path, target: Path) -> int:
        """See `Form`."""
        return max(0, count_lines(source, ("table",)) - self.header)


@dataclass(frozen=True)
class JsonLines:
    """One file with a JSON object per line.

    Attributes:
        keys: keys of source and target; `translation.en` is the key `en` of the object
            `translation`, unless there is a key of this whole name.
    """

    keys: tuple[str, str]
    unit: ClassVar[str] = "line"
    first: ClassVar[int] = 1

    def part(self, side: int) -> str:
        """Return the key of a side."""
        return f"key {self.keys[side]}"

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        """See `Form`."""
        number = 1
        with open_bytes(source, allowed=("json",)) as file:
            while lines := list(islice(file, size)):
                sides: Sides = ([], [])
                for line in lines:
                    row = self._row(line, source, number)
                    for key, side in zip(self.keys, sides, strict=True):
                        side.append(_json_text(row, key, source, number))
                    number += 1
                yield sides

    def _row(self, line: bytes, path: Path, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: line {number} is no JSON object; each line must be one, such as "
                f'{{"{self.keys[0]}": "...", "{self.keys[1]}": "..."}}'
            )
        return row

    def count(self, source: Path, target: Path) -> int:
        """See `Form`."""
        return count_lines(source, ("json",))


def _json_text(row: dict[str, Any], key: str, path: Path, number: int) -> bytes:
    value: Any = row
    for name in [key] if key in row else key.split("."):
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(f"{found[:40]!r}" for found in list(row)[:10])
            raise UserError(
                f"{path}: line {number} has no key {key}; its keys are {known or '(none)'}"
            )
        value = value[name]
    if not isinstance(value, str):
        raise UserError(
            f"{path}: line {number}: {key} should be text, not {json.dumps(value)[:40]}"
        )
    try:
        content = value.encode("utf-8", "surrogateescape")  # invalid bytes as they were
    except UnicodeEncodeError:  # half a surrogate pair, written as \ud800: no UTF-8, either
        content = value.encode("utf-8", "surrogatepass")
    return one_line(content)


_BREAKS = re.compile(rb"[\r\n]+")


def one_line(text: bytes) -> bytes:
    """Replace the line breaks in a sentence with spaces."""
    return _BREAKS.sub(b" ", text) if b"\n" in text or b"\r" in text else text


class Segments(_TwoFiles):
    """Two files with sentences in `<seg>`: test sets of WMT until 2020 (`.sgm`) and of IWSLT.

    These files are no well-formed XML. A file is read whole: the largest has a few megabytes.
    """

    unit: ClassVar[str] = "segment"

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        sources, targets = (_segments(path) for path in (source, target))
        if len(sources) != len(targets):
            raise _unequal(source, len(sources), target, len(targets), self.unit)
        for start in range(0, len(sources), size):
            yield sources[start : start + size], targets[start : start + size]

    def count(self, source: Path, target: Path) -> int:
        return sum(len(sources) for sources, _ in self.blocks(source, target, 1 << 30))


class TaggedTalks(Lines):
    """Two files of IWSLT's training text: lines of talks, and tagged lines about each talk.

    Titles and descriptions are sentences, too, as in the customary preparation of IWSLT14; other
    tagged lines (`<url>`, `<speaker>`, `<doc ...>`) are no text.
    """

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        sources, targets = (_talk_lines(path) for path in (source, target))
        if len(sources) != len(targets):
            raise _unequal(source, len(sources), target, len(targets), self.unit)
        for start in range(0, len(sources), size):
            yield sources[start : start + size], targets[start : start + size]

    def count(self, source: Path, target: Path) -> int:
        return sum(len(sources) for sources, _ in self.blocks(source, target, 1 << 30))


_TAGGED = re.compile(rb"<(title|description)>(.*)</\1>")


def _talk_lines(path: Path) -> list[bytes]:
    lines: list[bytes] = []
    with open_bytes(path, allowed=("xml",)) as file:
        for line in map(bytes.strip, file):
            if match := _TAGGED.fullmatch(line):
                lines.append(match[2].strip())
            elif not line.startswith(b"<"):
                lines.append(line)
    return lines


_SEGMENT = re.compile(rb"<seg\b[^>]*>(.*?)</seg\s*>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(rb"<seg\b", re.IGNORECASE)
_REFERENCE = re.compile(rb"&(?:(amp|lt|gt|quot|apos)|#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6}));")
_NAMED = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_SPACES = re.compile(rb"[ \t\r\n]+")


def _segments(path: Path) -> list[bytes]:
    with open_bytes(path, allowed=("xml",)) as file:
        content = file.read()
    found = _SEGMENT.findall(content)
    opened = len(_OPEN.findall(content))
    if not found:
        raise UserError(f"{path}: has no <seg>; is it a test set of WMT or IWSLT?")
    if opened != len(found):
        raise UserError(
            f"{path}: is incomplete: {opened:,} segments begin, but {len(found):,} end; "
            "get the file again"
        )
    return [_REFERENCE.sub(_character, _SPACES.sub(b" ", text).strip()) for text in found]


def _character(match: re.Match[bytes]) -> bytes:
    """Return the character that a reference such as `&amp;` or `&#233;` stands for."""
    name, decimal, hexadecimal = match.groups()
    if name is not None:
        return _NAMED[name]
    code = int(decimal) if decimal is not None else int(hexadecimal, 16)
    is_character = 32 <= code < 0x110000 and not 0xD800 <= code < 0xE000
    return chr(code).encode() if is_character else match[0]
