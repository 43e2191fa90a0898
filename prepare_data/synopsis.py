#!/usr/bin/env python3
"""Make a small summarization task of Debian packages: long description, one-line synopsis.

Writes {train,val,test}.{source,target}. Needs no root and no Debian: the descriptions are one file
of 6 MB, fetched once and kept in the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.data.download import Archive, fetch
from ds_seq.errors import UserError, run_command
from ds_seq.text.lines import decode_line, open_bytes
from ds_seq.text.normalize import Normalizer

DESCRIPTIONS = Archive("https://deb.debian.org/debian/dists/bookworm/main/i18n/Translation-en.xz")
"""Changes a few times a year, with the point releases of Debian 12, so no checksum is published."""

_MIN_SOURCE_WORDS, _MIN_TARGET_WORDS = 10, 3
_FAMILY_WORDS = 8
_SYNOPSIS = re.compile(r"Description-en: ?(.*)")
_normalize = Normalizer(nfkc=False, fold_spaces=True)

Pair = tuple[str, str]


def main(argv: Sequence[str]) -> int:
    """Fetch, split and write the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--tsv",
        type=Path,
        metavar="FILE",
        help="use these pairs instead: text and summary, separated by a tab; may be compressed",
    )
    parser.add_argument(
        "--held-out", type=int, default=1000, metavar="N", help="pairs in val and in test"
    )
    parser.add_argument(
        "--mirror",
        default=os.environ.get("WMT_MIRROR"),
        help="server or local folder that has the file at the path of its address (default: the "
        "environment variable WMT_MIRROR)",
    )
    arguments = parser.parse_args(argv)
    if arguments.tsv is not None:
        found = _read_table(arguments.tsv)
    else:
        path = fetch(DESCRIPTIONS, arguments.out / "archives", arguments.mirror)
        found = _read_descriptions(path)
    pairs = list(_selected(found))
    if len(pairs) < 3 * arguments.held_out:
        raise UserError(
            f"there are {len(pairs):,} pairs, too few to hold out 2 x {arguments.held_out:,}; give "
            "a smaller --held-out"
        )
    for split, rows in split_by_family(pairs, arguments.held_out).items():
        for side, end in enumerate(("source", "target")):
            text = "".join(f"{row[side]}\n" for row in rows)
            files.write_text(arguments.out / f"{split}.{end}", text)
        print(f"{split}: {len(rows):,} pairs -> {arguments.out}/{split}.source, {split}.target")
    return 0


def _read_table(path: Path) -> Iterator[Pair]:
    with open_bytes(path, allowed=("table",)) as file:
        for number, line in enumerate(file, 1):
            columns = decode_line(line.rstrip(b"\r\n"), path, number).split("\t")
            if len(columns) != 2:
                raise UserError(f"{path}: line {number} has {len(columns)} column(s), not 2")
            yield columns[0], columns[1]


def _read_descriptions(path: Path) -> Iterator[Pair]:
    """Read the paragraphs of a `Translation-en`: fields, and a description of indented lines."""
    synopsis, lines = "", list[str]()
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            text = decode_line(line.rstrip(b"\r\n"), path, number)
            if match := _SYNOPSIS.match(text):
                synopsis = match[1]
            elif text.startswith(" "):
                lines.append("" if text.strip() == "." else text)
            elif lines:
                yield " ".join(lines), synopsis
                lines = []
    if lines:
        yield " ".join(lines), synopsis


def _selected(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Normalize the pairs; leave out repeated texts and those that are too short."""
    seen = set[str]()
    for pair in pairs:
        source, target = map(_normalize, pair)
        long_enough = (
            len(source.split()) >= _MIN_SOURCE_WORDS and len(target.split()) >= _MIN_TARGET_WORDS
        )
        if long_enough and source not in seen:
            seen.add(source)
            yield source, target


def split_by_family(pairs: Sequence[Pair], held_out: int) -> dict[str, list[Pair]]:
    """Return train, val and test, by a hash of the beginning of each text.

    Packages that are built from one source often begin alike, so a split of single pairs would have
    test texts that are nearly in training. Such families are held out, or not, as a whole.

    Args:
        pairs: texts and summaries.
        held_out: size of val and of test; what is left of the last family of each is dropped.
    """
    families: dict[bytes, list[Pair]] = {}
    for pair in pairs:
        beginning = " ".join(pair[0].lower().split()[:_FAMILY_WORDS])
        families.setdefault(hashlib.sha256(beginning.encode()).digest(), []).append(pair)
    order = iter(sorted(families))
    splits: dict[str, list[Pair]] = {}
    for split in ("val", "test"):
        rows: list[Pair] = []
        while len(rows) < held_out:
            rows += families.pop(next(order))
        splits[split] = rows[:held_out]
    return {"train": [pair for family in families.values() for pair in family], **splits}


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
