"""Word alignments in the format of Pharaoh and Moses: `0-0 1-2`, source first, counted from 0."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ds_seq.errors import UserError
from ds_seq.text.lines import decode_line, open_bytes

Links = list[tuple[int, int]]
"""Pairs of a source and a target word, or of a source and a target token."""

_LINK = re.compile(r"(\d{1,9})-(\d{1,9})")


def parse_links(line: str, path: Path, number: int) -> Links:
    """Read a line of links.

    Args:
        line: the line, which may be empty.
        path: its file, for messages.
        number: its number, from 1.

    Raises:
        UserError: it is no list of links.
    """
    links = []
    for word in line.split():
        match = _LINK.fullmatch(word)
        if match is None:
            raise UserError(
                f"{path}: line {number}: {word[:40]!r} is no link of a source and a target word, "
                "such as 0-1; give alignments in the format of Pharaoh"
            )
        links.append((int(match[1]), int(match[2])))
    return links


def read_links(paths: Sequence[Path]) -> Iterator[Links]:
    """Yield the links of each pair of a text.

    Args:
        paths: its files, one after the other; compressed ones are known by their suffix.

    Raises:
        UserError: a file is missing, or a line is no list of links.
    """
    for path in paths:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                yield parse_links(decode_line(line.rstrip(b"\r\n"), path, number), path, number)


def spread_links(
    links: Sequence[tuple[int, int]],
    source: Sequence[int | None],
    target: Sequence[int | None],
) -> Links | None:
    """Turn links of words into links of tokens: all tokens of one word with all of the other.

    Args:
        links: links of words.
        source: word of each source token.
        target: word of each target token.

    Returns:
        Sorted links, each once; None if a link names a word that does not exist.
    """
    places: list[dict[int, list[int]]] = []
    for words in (source, target):
        found: dict[int, list[int]] = {}
        for place, word in enumerate(words):
            if word is not None:
                found.setdefault(word, []).append(place)
        places.append(found)
    spread: set[tuple[int, int]] = set()
    for left, right in links:
        if left not in places[0] or right not in places[1]:
            return None
        spread.update((i, j) for i in places[0][left] for j in places[1][right])
    return sorted(spread)
