"""The alignment step of `ds-seq prepare`: links of words become links of tokens of the shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.alignments import (
    are_current,
    links_block,
    remove_alignments,
    writing_alignments,
)
from ds_seq.data.cleaning.assembly import PLACE
from ds_seq.data.parallel import cleaning_up, map_in_order
from ds_seq.data.progress import Progress
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.text.alignments import Links, parse_links, spread_links
from ds_seq.text.lines import (
    PairPath,
    decode_line,
    decode_lines,
    open_bytes,
    read_blocks,
    text_fingerprint,
)
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.text.words import piece_words

_LINES = 10_000
_MOST_UNFIT = 0.5  # share of pairs whose links do not fit that cannot be an accident


class AlignedText(NamedTuple):
    """What the alignments of a split are made from.

    Attributes:
        raw: its raw text.
        alignments: the file of alignments of each raw text; None: it has none.
        clean: its clean text.
        places: file with the `PLACE` of each clean pair; None: nothing was dropped.
    """

    raw: Sequence[PairPath]
    alignments: Sequence[Path | None]
    clean: PairPath
    places: Path | None


class _Line(NamedTuple):
    """The links of a raw pair, and how many words it has."""

    links: bytes
    number: int
    words: tuple[int, int]


class _Item(NamedTuple):
    """Clean pairs and what was known of them before."""

    source: list[str]
    target: list[str]
    lines: list[_Line | None]
    paths: list[Path | None]


class _Aligned(NamedTuple):
    """Links of tokens, and what did not fit: number of pairs and the first of them."""

    block: TokenBlock
    unfit: int
    first_unfit: str


def make_alignments(
    split: str,
    text: AlignedText,
    reader: ShardReader,
    folder: Path,
    tokenizers: Tokenizers,
    workers: int,
    force: bool = False,
) -> None:
    """Write the alignments of the shards of a split, unless they are up to date.

    A pair has no links if its line has none, if its text has no file of alignments, or if cleaning
    has changed the number of its words, so that links mean other words; such pairs are counted.

    Args:
        split: name of the split.
        text: its text.
        reader: its shards.
        folder: their folder.
        tokenizers: tokenizers of the shards.
        workers: number of processes.
        force: whether to make alignments that are up to date again.

    Raises:
        UserError: a file is missing, has another number of lines than its text, holds something
            else than links, or belongs to another text.
    """
    if not any(text.alignments):
        remove_alignments(folder, split)
        return
    made_from = ["" if path is None else text_fingerprint(path) for path in text.alignments]
    if not force and are_current(folder, split, reader, made_from):
        print(f"{split}: alignments are up to date")
        return
    unfit, first_unfit, num_pairs = 0, "", len(reader)
    items = _items(text, num_pairs)
    with (
        cleaning_up(),
        writing_alignments(folder, split, reader, made_from) as writer,
        Progress(f"aligning {split}", num_pairs) as progress,
    ):
        for aligned in map_in_order(_align, tokenizers, items, workers):
            writer.add(aligned.block)
            unfit += aligned.unfit
            first_unfit = first_unfit or aligned.first_unfit
            progress(len(aligned.block.lengths))
        if unfit > _MOST_UNFIT * num_pairs:
            raise UserError(
                f"{first_unfit}: the links name other words than the text has, as in {unfit:,} of "
                f"{num_pairs:,} pairs; give the alignments of this text, whose words are separated "
                "by spaces"
            )
    print(f"{split}: {writer.links:,} links between tokens of {num_pairs:,} pairs")
    if unfit:
        print(f"    {unfit:,} pairs are without, whose words changed in cleaning: {first_unfit}")


def _kept(text: AlignedText, num_pairs: int) -> Iterator[tuple[int, _Line | None]]:
    """Yield, for each clean pair, the number of its raw text, and its line of links."""
    found = None if text.places is None else _read_places(text.places, num_pairs)
    place = 0
    for number, (pair, path) in enumerate(zip(text.raw, text.alignments, strict=True)):
        if found is None:
            yield from ((number, line) for line in _lines(pair, path))
            continue
        wanted = found[place : place + int(np.count_nonzero(found["text"] == number))]
        place += len(wanted)
        if path is None:
            yield from ((number, None) for _ in range(len(wanted)))
            continue
        following = iter(wanted["line"].tolist())
        want = next(following, None)
        above = pair.form.first - 1  # lines of the text before its first pair
        for line in _lines(pair, path):
            if line is not None and line.number + above == want:
                yield number, line
                want = next(following, None)


def _read_places(path: Path, num_pairs: int) -> NDArray[np.void]:
    if path.stat().st_size != num_pairs * PLACE.itemsize:
        raise UserError(f"{path}: does not belong to the shards; run `ds-seq prepare --force`")
    return np.memmap(path, PLACE, "r")


def _lines(pair: PairPath, path: Path | None) -> Iterator[_Line | None]:
    """Yield the line of links of each pair of a raw text; None if there are no alignments."""
    if path is None:
        for block in read_blocks([pair], _LINES):
            yield from [None] * len(block.source)
        return
    with open_bytes(path) as file:
        number = 0
        for block in read_blocks([pair], _LINES):
            first = block.first_line - pair.form.first + 1
            for place, sides in enumerate(zip(block.source, block.target, strict=True)):
                while number < first + place:  # reading may have left out pairs
                    links = file.readline()
                    number += 1
                if not links:
                    raise UserError(_explain_lines(path, "fewer", pair))
                # at ASCII's spaces, as aligners do
                source, target = (len(side.split()) for side in sides)
                yield _Line(links, number, (source, target))
        if file.readline():
            raise UserError(_explain_lines(path, "more", pair))


def _explain_lines(path: Path, how: str, pair: PairPath) -> str:
    return (
        f"{path}: has {how} lines than {pair.source}; line n must have the links of line n of the "
        "text"
    )


def _items(text: AlignedText, num_pairs: int) -> Iterator[_Item]:
    """Yield blocks of clean pairs with the links of each."""
    kept = _kept(text, num_pairs)
    for block in read_blocks([text.clean], _LINES):
        source, target = decode_lines(block)
        rows = list(islice(kept, len(source)))
        paths = [text.alignments[number] for number, _ in rows]
        yield _Item(source, target, [line for _, line in rows], paths)
    assert next(kept, None) is None  # which also compares the ends of the raw files


def _align(tokenizers: Tokenizers, item: _Item) -> _Aligned:
    """Turn the links of the words of some pairs into links of tokens."""
    found: list[Links] = []
    unfit, first_unfit = 0, ""
    for source, target, line, path in zip(*item, strict=True):
        links: Links | None = []
        if line is not None and path is not None:
            text = decode_line(line.links.rstrip(b"\r\n"), path, line.number)
            links = _spread(parse_links(text, path, line.number), line, source, target, tokenizers)
            if links is None:
                unfit += 1
                first_unfit = first_unfit or f"{path}: line {line.number}"
        found.append(links or [])
    return _Aligned(links_block(found), unfit, first_unfit)


def _spread(
    links: Links, line: _Line, source: str, target: str, tokenizers: Tokenizers
) -> Links | None:
    if not links:
        return []
    words = source.split(" "), target.split(" ")
    if (len(words[0]), len(words[1])) != line.words:
        return None
    sides = [
        piece_words(tokenizer, text, own)
        for tokenizer, text, own in zip(tokenizers, (source, target), words, strict=True)
    ]
    return spread_links(links, *sides)
