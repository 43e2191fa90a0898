"""Make the raw text of a published task: download, unpack, count, keep tests out of training.

A recipe says which archives have which corpora. Running it writes two files per corpus,
`NAME.SOURCE` and `NAME.TARGET`, each of which appears when it is complete; so an interrupted run
continues where it was. `recipe.json` says what each was made from.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from typing_extensions import TypedDict

from ds_seq import files
from ds_seq.data.download import SUMS_FILE, Archive, fetch, recorded_sums
from ds_seq.data.progress import Progress
from ds_seq.errors import UserError
from ds_seq.records import Count, read_json, record
from ds_seq.text.forms import Form, Lines
from ds_seq.text.lines import PairPath, read_blocks

OverlapChoice = Literal["refuse", "drop", "keep"]
"""What is done about training pairs that are in a test set, too."""

RECORD_FILE = "recipe.json"
_BLOCK_LINES = 10_000
_MOST_NAMED = 3
_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError)


@dataclass(frozen=True)
class Corpus:
    """One corpus or test set of a recipe.

    Attributes:
        name: its files are `NAME.SOURCE` and `NAME.TARGET`.
        archive: the file that has it.
        members: names of its files in the archive: source and target, or one with both. Empty: the
            download is no archive but the text itself.
        form: how the sentences are written there.
        published: published number of pairs, None if it is not known.
        held_out: take each pair whose number is a multiple of this for validation instead, as
            `HELD_OUT.SOURCE` and `HELD_OUT.TARGET`; None: no pair.
    """

    name: str
    archive: Archive
    members: tuple[str, ...]
    form: Form = field(default_factory=Lines)
    published: int | None = None
    held_out: int | None = None


HELD_OUT = "valid"


@dataclass(frozen=True)
class Recipe:
    """Training, validation and test text of a task.

    Attributes:
        name: its name.
        languages: language codes of source and target, or `SIDES`; they end the names of the files.
        train: training corpora.
        valid: validation sets.
        test: test sets; no pair of theirs may be in training.
        note: what to know when sizes are compared with published ones; may be empty.
    """

    name: str
    languages: tuple[str, str]
    train: tuple[Corpus, ...]
    valid: tuple[Corpus, ...]
    test: tuple[Corpus, ...]
    note: str = ""


@record
class _Made(TypedDict):
    """What a corpus was made from, and its sizes."""

    made_from: list[str]
    pairs: Count
    held_out: Count
    overlap: Count
    """Pairs that are in a test set, too."""
    choice: OverlapChoice
    """What was done about them."""
    files: dict[str, Count]
    """Sizes in bytes by name."""


@record
class _Record(TypedDict):
    corpora: dict[str, _Made]


class _Overlap(NamedTuple):
    """Training pairs that are in a test set: how many, and the first of them."""

    number: int
    first: list[str]


def run(
    recipe: Recipe, folder: Path, mirror: str | None = None, overlap: OverlapChoice = "refuse"
) -> dict[str, int]:
    """Make all files of a recipe that are missing or were made from something else.

    Args:
        recipe: the recipe.
        folder: folder to write to.
        mirror: see `fetch`.
        overlap: what to do about training pairs that are in a test set, too. With `refuse`, the
            files of such a corpus are not written; the others are.

    Returns:
        The number of pairs by name.

    Raises:
        UserError: a file cannot be had or read, or training and test text overlap.
    """
    with files.Lock(folder / files.LOCK_FILE, folder, "wait for it, or give another folder"):
        return _run(recipe, _Work(recipe, folder, mirror, overlap))


def _run(recipe: Recipe, work: _Work) -> dict[str, int]:
    sizes: dict[str, int] = {}
    tests: dict[bytes, str] = {}
    for corpus in (*recipe.valid, *recipe.test):
        sizes[corpus.name] = work.make(corpus, {})["pairs"]
        _report(corpus, sizes[corpus.name])
    for corpus in recipe.test:
        for pair in _pairs(PairPath(*work.outputs(corpus.name))):
            tests.setdefault(_digest(pair), corpus.name)
    problems = []
    for corpus in recipe.train:
        try:
            made = work.make(corpus, tests)
        except _OverlapError as error:
            problems.append(str(error))
            continue
        sizes[corpus.name] = made["pairs"]
        dropped = made["overlap"] if made["choice"] == "drop" else 0
        _report(corpus, made["pairs"] + made["held_out"] + dropped, dropped)
        if corpus.held_out:
            sizes[HELD_OUT] = made["held_out"]
    if problems:
        raise UserError("\n".join(problems))
    return sizes


class _OverlapError(UserError):
    """Training pairs are in a test set."""


class _Work:
    """The files of a recipe in a folder, and the record of what they were made from."""

    def __init__(
        self, recipe: Recipe, folder: Path, mirror: str | None, overlap: OverlapChoice
    ) -> None:
        self._recipe, self._folder, self._mirror, self._overlap = recipe, folder, mirror, overlap
        self._archives: dict[str, Path] = {}

    def outputs(self, name: str) -> tuple[Path, Path]:
        """Return the files of a corpus."""
        source, target = (self._folder / f"{name}.{code}" for code in self._recipe.languages)
        return source, target

    def make(self, corpus: Corpus, tests: Mapping[bytes, str]) -> _Made:
        """Write the files of a corpus unless they are there, made from the same archive."""
        archive = self._fetch(corpus.archive)
        made_from = [
            recorded_sums(self._folder / "archives" / SUMS_FILE)[archive.name],
            *corpus.members,
            str(corpus.held_out),
            hashlib.sha256(b"".join(sorted(tests))).hexdigest() if tests else "",
        ]
        known = self._read().get(corpus.name)
        if (
            known is not None
            and known["made_from"] == made_from
            # what has no overlap is the same for each choice
            and (known["overlap"] == 0 or known["choice"] == self._overlap)
            and self._has(known["files"])
        ):
            return known
        with _scratch(self._folder / "unpacked") as place:
            text = _unpack(corpus, archive, place)
            made = self._write(corpus, text, tests)
        made["made_from"] = made_from
        content = {**self._read(), corpus.name: made}
        files.write_json(self._folder / RECORD_FILE, {"corpora": content})
        return made

    def _fetch(self, archive: Archive) -> Path:
        """Fetch an archive once, although several corpora may be in it."""
        if archive.url not in self._archives:
            path = fetch(archive, self._folder / "archives", self._mirror)
            self._archives[archive.url] = path
        return self._archives[archive.url]

    def _read(self) -> dict[str, _Made]:
        path = self._folder / RECORD_FILE
        return read_json(path, _Record, f"remove {path}")["corpora"] if path.exists() else {}

    def _has(self, sizes: Mapping[str, int]) -> bool:
        paths = {self._folder / name: size for name, size in sizes.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def _write(self, corpus: Corpus, text: PairPath, tests: Mapping[bytes, str]) -> _Made:
        paths = list(self.outputs(corpus.name))
        if corpus.held_out:
            paths += self.outputs(HELD_OUT)
        counts = [0, 0]
        overlap = _Overlap(0, [])
        with ExitStack() as stack:
            temporary = [stack.enter_context(files.replacing(path)) for path in paths]
            with ExitStack() as opened, Progress(f"writing {corpus.name}") as progress:
                outputs = [opened.enter_context(open(path, "wb")) for path in temporary]
                for number, pair in enumerate(_pairs(text), 1):
                    if tests and (found := tests.get(_digest(pair))) is not None:
                        overlap = _counted(overlap, number, found, pair)
                        if self._overlap == "drop":
                            continue
                    held = bool(corpus.held_out) and number % (corpus.held_out or 1) == 0
                    for side, file in zip(pair, outputs[2 * held :], strict=False):
                        file.write(side + b"\n")
                    counts[held] += 1
                    if number % _BLOCK_LINES == 0:
                        progress(_BLOCK_LINES)
            if sum(counts) == 0:
                raise UserError(f"{corpus.name}: there is no pair in {corpus.archive.name}")
            if overlap.number and self._overlap == "refuse":
                raise _OverlapError(self._explain(corpus, overlap))
        return _Made(
            made_from=[],
            pairs=counts[0],
            held_out=counts[1],
            overlap=overlap.number,
            choice=self._overlap,
            files={path.name: path.stat().st_size for path in paths},
        )

    def _explain(self, corpus: Corpus, overlap: _Overlap) -> str:
        more = ", ..." if overlap.number > len(overlap.first) else ""
        return (
            f"{corpus.name}: {overlap.number:,} of its pairs are in a test set, too "
            f"({'; '.join(overlap.first)}{more}), so scores would mean little; run this again with "
            "OVERLAP=drop to leave them out of training, or OVERLAP=keep"
        )


def _counted(overlap: _Overlap, number: int, test: str, pair: tuple[bytes, bytes]) -> _Overlap:
    first = overlap.first
    if len(first) < _MOST_NAMED:
        text = pair[0].decode(errors="replace")
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        first = [*first, f"line {number} {shown!r} in {test}"]
    return _Overlap(overlap.number + 1, first)


def _pairs(text: PairPath) -> Iterator[tuple[bytes, bytes]]:
    for block in read_blocks([text], _BLOCK_LINES):
        yield from zip(block.source, block.target, strict=True)


def _digest(pair: tuple[bytes, bytes]) -> bytes:
    """Identify a pair, whatever spaces surround its sides."""
    joined = b"\n".join(side.strip() for side in pair)
    return hashlib.blake2b(joined, digest_size=12).digest()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for unpacked files, which is removed at the end."""
    with files.writing(folder):
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(corpus: Corpus, archive: Path, place: Path) -> PairPath:
    """Take the files of a corpus out of its archive; return them as a text."""
    paths = [archive, archive]
    if corpus.members:
        found = _extract(archive, corpus.members, place)
        paths = [found[corpus.members[0]], found[corpus.members[-1]]]
    return PairPath(paths[0], paths[1], corpus.form)


def _extract(archive: Path, members: Sequence[str], place: Path) -> dict[str, Path]:
    """Write members of an archive to a folder, under their own names; nothing else is unpacked."""
    wanted = {name: place / f"{number}.{Path(name).name}" for number, name in enumerate(members)}
    missing = dict(wanted)
    try:
        with tarfile.open(archive, "r|*") as content:
            for item in content:
                name = item.name.removeprefix("./")
                path = missing.pop(name, None)
                if path is not None:
                    with _member(content, item) as source, files.writing(path):
                        _save(source, path)
                if not missing:
                    break
    except _DAMAGED as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({error}); it is damaged or incomplete: remove it and "
            "run this again"
        ) from None
    if missing:
        raise UserError(f"{archive}: has no {' and no '.join(missing)}; is it another archive?")
    return wanted


def _member(content: tarfile.TarFile, item: tarfile.TarInfo) -> BinaryIO:
    source = content.extractfile(item) if item.isfile() else None
    if source is None:
        raise UserError(f"the archive's {item.name} is no file; is it another archive?")
    return source  # type: ignore[return-value]


def _save(source: BinaryIO, path: Path) -> None:
    """Copy an open member; an error of reading is one of the archive, not of the new file."""
    with open(path, "wb") as target:
        while True:
            try:
                block = source.read(1 << 20)
            except _DAMAGED as error:
                raise EOFError(str(error)) from None
            if not block:
                return
            target.write(block)


def _report(corpus: Corpus, pairs: int, dropped: int = 0) -> None:
    """Print the size of a corpus next to the published one."""
    line = f"{corpus.name:<24}{pairs:>12,} pairs"
    if corpus.published is not None:
        same = "as published" if pairs == corpus.published else f"published: {corpus.published:,}"
        line += f"  {same}"
    if dropped:
        line += f"; {dropped:,} of them are in a test set and left out"
    print(line, flush=True)
    if corpus.published not in (None, pairs):
        print(
            f"ds-seq: warning: {corpus.name} has {pairs:,} pairs, not the published "
            f"{corpus.published:,}",
            file=sys.stderr,
        )
