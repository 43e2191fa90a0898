"""Parallel text in well-formed XML: translation memories and the test sets of WMT since 2021."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar
from xml.parsers import expat

from ds_seq.errors import UserError
from ds_seq.text.forms import Sides
from ds_seq.text.opening import BLOCK, open_bytes

Pair = tuple[str, str]


@dataclass(frozen=True)
class _Xml:
    """One XML file with both sides; it is read as a stream.

    Attributes:
        languages: language codes of source and target in the file; `en` also means `en-US`.
    """

    languages: tuple[str, str]
    unit: ClassVar[str] = "segment"
    first: ClassVar[int] = 1

    def part(self, side: int) -> str:
        """Return the language of a side."""
        return f"language {self.languages[side]}"

    def blocks(self, source: Path, target: Path, size: int) -> Iterator[Sides]:
        """See `Form`."""
        reader = self._reader()
        with open_bytes(source, allowed=("xml", "utf16")) as file:
            is_last = False
            while not is_last:
                content = file.read(BLOCK)
                is_last = not content
                reader.feed(content, source)
                while len(reader.pairs) >= size or (is_last and reader.pairs):
                    pairs, reader.pairs = reader.pairs[:size], reader.pairs[size:]
                    yield [pair[0].encode() for pair in pairs], [p[1].encode() for p in pairs]
        if reader.num_pairs == 0:
            found = ", ".join(sorted(reader.seen)) or "no language"
            raise UserError(
                f"{source}: has no pair of {self.languages[0]} and {self.languages[1]}; it has "
                f"{found}. Name the two codes as they are there, such as keys: [en-US, de]"
            )
        if reader.num_left_out:
            _say(
                f"{source}: {reader.num_left_out:,} units lack {self.languages[0]} or "
                f"{self.languages[1]} and are left out; {reader.num_pairs:,} have both"
            )

    def count(self, source: Path, target: Path) -> int:
        """See `Form`."""
        return sum(len(sources) for sources, _ in self.blocks(source, target, 10_000))

    @abstractmethod
    def _reader(self) -> _Reader: ...


class Tmx(_Xml):
    """A translation memory (`.tmx`): the first text of each language in every `<tu>`.

    Codes of the program that wrote the memory (`<bpt>`, `<ph>`, ...) are left out.
    """

    def _reader(self) -> _Reader:
        return _TmxReader(self.languages)


class WmtXml(_Xml):
    """A test set of WMT since 2021 (`.xml`): `<src>` and the first `<ref>` of each `<doc>`."""

    def _reader(self) -> _Reader:
        return _WmtReader(self.languages)


@cache
def _say(note: str) -> None:
    """Print a note once, although the references are read in every validation."""
    print(f"ds-seq: note: {note}", file=sys.stderr, flush=True)


class _Reader(ABC):
    """Collects pairs from the events of a parser."""

    def __init__(self, languages: tuple[str, str]) -> None:
        self.languages = languages
        self.pairs: list[Pair] = []
        self.num_pairs = self.num_left_out = 0
        self.seen: set[str] = set()
        self._text: list[str] | None = None  # of the open segment
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self.start
        self._parser.EndElementHandler = self.end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._refuse_entities

    def feed(self, content: bytes, path: Path) -> None:
        """Parse the next part of a file; an empty one ends it."""
        try:
            self._parser.Parse(content, not content)
        except expat.ExpatError as error:
            raise UserError(
                f"{path}: line {error.lineno}: is no well-formed XML "
                f"({expat.ErrorString(error.code)}); the file is damaged, incomplete, or not in "
                "the encoding that it declares"
            ) from None
        except _EntityError:
            raise UserError(
                f"{path}: declares entities, which neither TMX nor WMT's XML needs; remove them"
            ) from None

    @abstractmethod
    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        """Handle the start of an element."""

    @abstractmethod
    def end(self, name: str) -> None:
        """Handle the end of an element."""

    def add(self, source: str | None, target: str | None) -> None:
        """Add a pair, or count one of which a side is missing."""
        if source is None or target is None:
            self.num_left_out += 1
        else:
            self.pairs.append((source, target))
            self.num_pairs += 1

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def take_text(self) -> str:
        """Return the text of the segment that has ended, on one line."""
        text = "".join(self._text or ())
        self._text = None
        # only the spaces of XML: others belong to the sentence
        return " ".join(
            part for part in text.replace("\t", " ").replace("\n", " ").split(" ") if part
        ).replace("\r", " ")

    def _refuse_entities(self, *declaration: object) -> None:
        raise _EntityError


class _EntityError(Exception):
    """An entity could stand for gigabytes of text."""


def _is(code: str, wanted: str) -> bool:
    """Return whether a language code is the wanted one, or that with a region or script."""
    one, other = (name.lower().replace("_", "-") for name in (code, wanted))
    return one == other or one.startswith(f"{other}-")


class _TmxReader(_Reader):
    _CODES = frozenset({"bpt", "ept", "it", "ph", "ut", "sub"})

    def __init__(self, languages: tuple[str, str]) -> None:
        super().__init__(languages)
        self._language = ""
        self._variants: dict[str, str] = {}
        self._outer: list[list[str] | None] = []  # text around a code

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "tu":
            self._variants = {}
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or ""
            self.seen.add(self._language)
        elif name == "seg":
            self._text = []
        elif name in self._CODES:
            self._outer.append(self._text)
            self._text = None

    def end(self, name: str) -> None:
        if name == "seg":
            self._variants.setdefault(self._language, self.take_text())
        elif name in self._CODES:
            self._text = self._outer.pop()
        elif name == "tu":
            self.add(*map(self._find, self.languages))

    def _find(self, wanted: str) -> str | None:
        exact = self._variants.get(wanted)
        return (
            exact
            if exact is not None
            else next((text for code, text in self._variants.items() if _is(code, wanted)), None)
        )


class _WmtReader(_Reader):
    def __init__(self, languages: tuple[str, str]) -> None:
        super().__init__(languages)
        self._sides: list[tuple[str, dict[str, str]]] = []  # of this document
        self._has_source = self._has_reference = False
        self._side: dict[str, str] | None = None
        self._id = ""

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "doc":
            self._sides, self._has_source, self._has_reference = [], False, False
        elif name in ("src", "ref", "hyp"):
            is_wanted = (name == "src" and not self._has_source) or (
                name == "ref" and not self._has_reference
            )
            self._has_source |= name == "src"
            self._has_reference |= name == "ref"
            self._side = {} if is_wanted else None
            if self._side is not None:
                language = attributes.get("lang", "")
                self.seen.add(language)
                self._sides.append((language, self._side))
        elif name == "seg" and self._side is not None:
            self._id, self._text = attributes.get("id", ""), []

    def end(self, name: str) -> None:
        if name == "seg" and self._side is not None:
            self._side[self._id] = self.take_text()
        elif name in ("src", "ref", "hyp"):
            self._side = None
        elif name == "doc":
            sides = [
                next((side for code, side in self._sides if _is(code, wanted)), {})
                for wanted in self.languages
            ]
            for key in dict.fromkeys([*sides[0], *sides[1]]):
                self.add(sides[0].get(key), sides[1].get(key))
