"""How much of a held-out text is in the training text, too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from ds_seq.text.lines import PairPath, read_blocks

_LINES = 10_000  # lines in memory at a time


class Overlap(NamedTuple):
    """Counts of held-out pairs.

    Attributes:
        total: all of them.
        pairs: those that are training pairs, too.
        sources: others whose source is in the training text, with another translation.
    """

    total: int
    pairs: int
    sources: int


def find_overlap(train: PairPath, held_out: PairPath) -> Overlap:
    """Look for each pair of a text in the training text, byte by byte.

    Args:
        train: the training text, which is read block by block.
        held_out: validation or test text, of which digests are kept in memory.

    Raises:
        UserError: a file is missing, or the two sides have different numbers of lines.
    """
    hashes: set[int] = set()  # those of Python, which cost less but are not unique
    wanted: list[tuple[bytes, bytes]] = []
    for source_line, target_line in _lines(held_out):
        hashes.add(hash(source_line))
        wanted.append((_digest(source_line), _digest(target_line)))
    sources = {source for source, _ in wanted}
    seen_sources: set[bytes] = set()
    seen_pairs: set[tuple[bytes, bytes]] = set()
    for block in read_blocks([train], _LINES):
        if hashes.isdisjoint(map(hash, block.source)):
            continue
        for source_line, target_line in zip(block.sides[0], block.sides[-1], strict=True):
            if hash(source_line) in hashes and (source := _digest(source_line)) in sources:
                seen_sources.add(source)
                seen_pairs.add((source, _digest(target_line)))
    pairs = sum(pair in seen_pairs for pair in wanted)
    return Overlap(len(wanted), pairs, sum(source in seen_sources for source, _ in wanted) - pairs)


def _lines(text: PairPath) -> Iterator[tuple[bytes, bytes]]:
    for block in read_blocks([text], _LINES):
        pairs = zip(block.sides[0], block.sides[-1], strict=True)
        # an empty line ends a document of text of one side
        yield from (pair for pair in pairs if any(pair))


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=12).digest()
