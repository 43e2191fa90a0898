#!/usr/bin/env python3
"""Processor time of reading parallel text in each form, as a ratio to two plain files.

    python benchmarks/text_forms.py train.en train.de [--pairs 200000] [--record]

The text is repeated or cut to the wanted number of pairs, written in every form to a
temporary folder, and read by `read_blocks`, which all of preparation reads with. Child processes
(the program zstd) count, too.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path

from common import Spread, finish, table

from ds_seq.text import compression
from ds_seq.text.forms import JsonLines, Segments, Table
from ds_seq.text.lines import PairPath, read_blocks, read_lines
from ds_seq.text.xml_forms import Tmx

_BLOCK_LINES = 20_000
_ROUNDS = 5
_PLAIN = "two files"
_CONTROL = re.compile(r"[\x00-\x1f]")  # XML has none of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    arguments = parser.parse_args()
    sides = (read_lines(path) for path in (arguments.source, arguments.target))
    rows = zip(*([_CONTROL.sub(" ", line) for line in side] for side in sides), strict=True)
    pairs = list(islice(cycle(list(rows)), arguments.pairs))
    with tempfile.TemporaryDirectory(prefix="ds_seq_forms_") as folder:
        texts = write(pairs, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in texts}
        for _ in range(_ROUNDS):
            for name, text in texts.items():
                with as_named(name):
                    seconds[name].append(time_of(text, len(pairs)))
    plain = statistics.median(seconds[_PLAIN])
    rows_of_table = [
        (
            name,
            Spread.of([time / plain for time in times]).text(2),
            f"{len(pairs) / statistics.median(times):,.0f}",
        )
        for name, times in seconds.items()
    ]
    about = f"Medians (and extremes) of {_ROUNDS} rounds, processor time, {len(pairs):,} pairs."
    body = f"{table(['form', 'time to two files', 'pairs/s'], rows_of_table)}\n\n{about}"
    return finish("Reading text in each form", body, [], arguments.record)


def write(pairs: list[tuple[str, str]], folder: Path) -> dict[str, PairPath]:
    """Write all forms; return the texts by name."""
    paths = folder / "x.en", folder / "x.de"
    segments = folder / "x-src.sgm", folder / "x-ref.sgm"
    for side in (0, 1):
        text = "".join(f"{pair[side]}\n" for pair in pairs)
        paths[side].write_text(text, encoding="utf-8")
        marked = "".join(f'<seg id="1">{escape(pair[side])}</seg>\n' for pair in pairs)
        segments[side].write_text(f"<doc>\n{marked}</doc>\n", encoding="utf-8")
    tabs, rows, memory = folder / "x.tsv", folder / "x.jsonl", folder / "x.tmx"
    tabs.write_text("".join(f"{s}\t0.5\t{t}\n" for s, t in pairs), encoding="utf-8")
    objects = (
        json.dumps({"translation": {"en": s, "de": t}}, ensure_ascii=False) for s, t in pairs
    )
    rows.write_text("".join(f"{row}\n" for row in objects), encoding="utf-8")
    units = (
        f'<tu><tuv xml:lang="en"><seg>{escape(s)}</seg></tuv>'
        f'<tuv xml:lang="de"><seg>{escape(t)}</seg></tuv></tu>\n'
        for s, t in pairs
    )
    body = f"<tmx><body>\n{''.join(units)}</body></tmx>\n"
    memory.write_text(f'<?xml version="1.0"?>\n{body}', encoding="utf-8")
    texts = {
        _PLAIN: PairPath(*paths),
        "tsv": PairPath(tabs, tabs, Table((1, 3), header=False)),
        "jsonl": PairPath(rows, rows, JsonLines(("translation.en", "translation.de"))),
        "sgm": PairPath(*segments, Segments()),
        "tmx": PairPath(memory, memory, Tmx(("en", "de"))),
    }
    for name, suffix, compress in compressors():
        packed = [path.with_name(f"{path.name}{suffix}") for path in paths]
        for path, other in zip(paths, packed, strict=True):
            if not other.exists():
                other.write_bytes(compress(path.read_bytes()))
        texts[f"{_PLAIN}, {name}"] = PairPath(packed[0], packed[1])
    return texts


def compressors() -> Iterator[tuple[str, str, Callable[[bytes], bytes]]]:
    yield ".gz", ".gz", gzip.compress
    yield ".bz2", ".bz2", bz2.compress
    yield ".xz", ".xz", lambda content: lzma.compress(content, preset=1)
    if shutil.which("zstd"):
        yield ".zst by the program", ".zst", zstd
        if find_spec("zstandard"):
            yield ".zst by the package", ".zst", zstd


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True).stdout


@contextmanager
def as_named(name: str) -> Iterator[None]:
    """Let a `.zst` be read in the named way."""
    known = compression.find_spec
    if name.endswith("by the program"):
        compression.find_spec = lambda package, parent=None: None
    try:
        yield
    finally:
        compression.find_spec = known


def time_of(text: PairPath, expected: int) -> float:
    before = used()
    count = sum(len(block.source) for block in read_blocks([text], _BLOCK_LINES))
    seconds = used() - before
    assert count == expected
    return seconds


def used() -> float:
    """Return the processor time of this process and its ended children, in seconds."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
