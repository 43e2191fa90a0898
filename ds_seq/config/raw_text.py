"""Which files the entries of `data.raw` name on this machine; imports no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from os.path import exists, isdir
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ds_seq.config.text_files import FORMS, RawConfig, SplitConfig, ends_of
from ds_seq.errors import UserError
from ds_seq.names import COMPRESSED, SIDES, InvalidUtf8

if TYPE_CHECKING:
    from ds_seq.config.data import DataConfig

TextForm = Literal["lines", "text", "segments", "tsv", "jsonl", "tmx", "xml"]

_STEMS = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
_SEGMENTS = (".sgm", ".sgml", ".xml")
SIGNATURE = "mtdata.signature.txt"
"""File in which mtdata writes how its output folder can be made again."""


class TextFiles(NamedTuple):
    """One parallel text: its files, and how the sentences are written there.

    Attributes:
        source: file of the source side.
        target: file of the target side; the same one if both sides are in one file.
        form: how the sentences are written.
        columns: columns of a table.
        header: whether a table has a header.
        keys: names of the two sides in JSON or XML.
        invalid_utf8: what happens to pairs that are not UTF-8.
        alignments: file of word alignments; None: there are none.
    """

    source: str
    target: str
    form: TextForm
    columns: tuple[int, int]
    header: bool
    keys: tuple[str, str]
    invalid_utf8: InvalidUtf8
    alignments: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys((self.source, self.target)))


def raw_texts(
    raw: RawConfig, split: str, languages: tuple[str, str], must_exist: bool = True
) -> list[TextFiles]:
    """Return the texts of a split in order.

    A folder given for all splits (`data.raw: FOLDER`) need not have valid and test text.

    Args:
        raw: the section.
        split: `train`, `valid` or `test`; others have none.
        languages: language codes of source and target.
        must_exist: see `text_files`.

    Raises:
        UserError: a folder does not have the text that it was named for.
    """
    entries = raw.entries(split)
    if raw.folder is not None and split in ("valid", "test") and not getattr(raw, split):
        entry = entries[0]
        if not any(_in_folder(entry, split, languages)) and isdir(_folder_of(raw.folder)):
            return []
    return [
        text
        for entry in entries
        for text in text_files(entry, split, entry.pair(languages), must_exist)
    ]


def named_texts(
    data: DataConfig, split: str, must_exist: bool = True
) -> list[tuple[str, TextFiles]]:
    """Return the texts of a split in order, those of `data.corpora` included, with their keys.

    Args:
        data: the section.
        split: `train`, `valid` or `test`; others have none.
        must_exist: see `text_files`.

    Raises:
        UserError: a folder does not have the text that it was named for.
    """
    if split != "train" or not data.corpora:
        texts = raw_texts(data.raw, split, data.languages, must_exist)
        return [(f"data.raw.{split}", text) for text in texts]
    return [
        (f"data.corpora.{name}", text)
        for name, corpus in data.corpora.items()
        for text in text_files(
            corpus, split, corpus.pair(data.languages), must_exist, f"data.corpora.{name}"
        )
    ]


def text_files(
    entry: SplitConfig,
    split: str,
    languages: tuple[str, str],
    must_exist: bool = True,
    key: str | None = None,
) -> list[TextFiles]:
    """Return the texts that one entry names, in order.

    Args:
        entry: an entry of a split, or a named corpus.
        split: its split, by which a folder has it.
        languages: language codes of source and target.
        must_exist: whether a folder without the text is an error. If not, it has the files that it
            would have by its first rule: on another machine, they need not be there.
        key: key of the entry, for messages; None: that of the split.

    Raises:
        UserError: a folder does not have the text that it was named for.
    """
    keys = entry.keys or ends_of(languages)
    invalid = entry.invalid_utf8 or ("drop" if split == "train" else "stop")
    form = next(name for name in FORMS if getattr(entry, name) is not None)
    pairs: list[tuple[str, str]]
    if form == "folder":
        assert entry.folder is not None
        pairs = list(_in_folder(entry, split, languages))
        if not pairs and must_exist:
            where = key or f"data.raw.{split}"
            raise UserError(f"{where}: {_explain_folder(entry, split, languages)}")
        if not pairs:
            stem = _folder_of(entry.folder) / split
            first, second = (f"{stem}.{end}" for end in entry.keys or SIDES)
            pairs = [(first, second)]
    else:
        second = "target" if form == "source" else form
        names = [_names(getattr(entry, name)) for name in (form, second)]
        pairs = list(zip(*names, strict=True))
    alignments: list[str | None] = [*entry.alignment_files] or [None] * len(pairs)
    columns, header = entry.columns, entry.header
    return [
        TextFiles(source, target, _form(form, source), columns, header, keys, invalid, links)
        for (source, target), links in zip(pairs, alignments, strict=True)
    ]


def _names(value: list[str] | str) -> list[str]:
    return [value] if isinstance(value, str) else value


def _form(key: str, source: str) -> TextForm:
    if key in ("text", "tsv", "jsonl", "tmx", "xml"):
        return key  # type: ignore[return-value]
    return "segments" if plain_name(source).lower().endswith(_SEGMENTS) else "lines"


def plain_name(name: str) -> str:
    """Return a name without the suffix of a compressed file."""
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def _folder_of(name: str) -> Path:
    """Return the folder that a name means: itself, or that of a signature."""
    path = Path(name)
    return path.parent if path.name.endswith("signature.txt") else path


def _in_folder(
    entry: SplitConfig, split: str, languages: tuple[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the pairs of files that a folder has for a split."""
    assert entry.folder is not None
    folder = _folder_of(entry.folder)
    if not isdir(folder):
        return
    codes = _codes(folder, languages)
    for stem in _STEMS.get(split, (split,)):
        for ends in (entry.keys,) if entry.keys is not None else (SIDES, ends_of(languages), codes):
            if ends is not None and (pair := _pair(folder, stem, ends)) is not None:
                yield pair
                return
    ends = entry.keys or codes
    if ends is None:
        return
    if split == "test":  # mtdata has a number for each
        for number in range(1, 100):
            pair = _pair(folder, f"test{number}", ends)
            if pair is None:
                return
            yield pair
    if split == "train":
        yield from _parts(folder / "train-parts", ends)


def _pair(folder: Path, stem: str, ends: tuple[str, str]) -> tuple[str, str] | None:
    """Return two files of a folder, compressed or not, if both are there."""
    found = [
        next((str(p) for c in ("", *COMPRESSED) if exists(p := folder / f"{stem}.{end}{c}")), None)
        for end in ends
    ]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _parts(folder: Path, ends: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the files of corpora that mtdata has not merged."""
    if not isdir(folder):
        return
    names = sorted(
        plain_name(path.name) for path in folder.iterdir() if not path.name.startswith(".")
    )
    stems = dict.fromkeys(name.rpartition(".")[0] for name in names if ".meta." not in name)
    for stem in stems:
        suffixes = {name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == stem}
        sides = [next((s for s in suffixes if _is(s, end)), end) for end in ends]
        if (pair := _pair(folder, stem, (sides[0], sides[1]))) is not None:
            yield pair


def _is(code: str, wanted: str) -> bool:
    return code == wanted or code.startswith(f"{wanted}_")


def _codes(folder: Path, languages: tuple[str, str]) -> tuple[str, str] | None:
    """Return the codes that mtdata has for the languages, by its signature.

    It writes codes of three letters (ISO 639-3). `de` is `deu`: one side that begins alike says
    which is which.
    """
    match = re.search(r"(?:^|\s)(?:-l|--langs)[ =](\S+)", _signature(folder))
    if match is None:
        return None
    codes = match[1].strip("'\"").split("-")
    if len(codes) != 2:
        return None
    first, second = codes
    straight = [_alike(first, languages[0]), _alike(second, languages[1])]
    crossed = [_alike(second, languages[0]), _alike(first, languages[1])]
    if sum(straight) == sum(crossed):
        return None
    return (first, second) if sum(straight) > sum(crossed) else (second, first)


def _alike(code: str, language: str) -> bool:
    return re.split("[-_]", code.lower())[0].startswith(re.split("[-_]", language.lower())[0])


def _signature(folder: Path) -> str:
    try:
        return (folder / SIGNATURE).read_text(encoding="utf-8", errors="replace")[:1_000_000]
    except OSError:
        return ""


def signature_command(file: Path) -> list[str] | None:
    """Return the command of the last entry of a `mtdata.signature.txt`, None if there is none."""
    lines = _signature(file.parent).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("mtdata get ")]
    return shlex.split(commands[-1]) if commands else None


def _explain_folder(entry: SplitConfig, split: str, languages: tuple[str, str]) -> str:
    assert entry.folder is not None
    folder = _folder_of(entry.folder)
    if not isdir(folder):
        return f"{entry.folder}: no such folder"
    stem = {"valid": "val"}.get(split, split)
    ends = entry.keys or SIDES
    codes = ends_of(languages)
    also = "" if entry.keys or codes == SIDES else f", or {stem}.{codes[0]} and {stem}.{codes[1]}"
    if exists(folder / SIGNATURE) and entry.keys is None and _codes(folder, languages) is None:
        return (
            f"{folder}: cannot tell which of mtdata's languages is {languages[0]}; say it, such as "
            "keys: [deu, eng]"
        )
    if entry.folder != str(folder) or exists(folder / SIGNATURE):
        return (
            f"{folder}: mtdata's output is not there; make it with "
            f"`bash prepare_data/mtdata.sh {folder / SIGNATURE} {folder}`"
        )
    return (
        f"{folder}: has no {stem}.{ends[0]} and {stem}.{ends[1]}{also} (also compressed); name "
        "the files, or give keys: [END, END] of their names"
    )
