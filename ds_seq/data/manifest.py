"""The manifest of a folder of shards: its content, and checks that it is complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ds_seq import files
from ds_seq.data.origin import Origin
from ds_seq.errors import UserError
from ds_seq.names import NumSides
from ds_seq.records import (
    Count,
    FileName,
    Positive,
    Versioned,
    inside,
    parse_json,
    read_limited,
    record,
)

FORMAT_VERSION = 2
"""What is written. Format 1, with `.idx` files of offsets in place of the lengths, is read, too."""
IdType = Literal["uint16", "uint32"]
"""On-disk types of a token id."""
_REMAKE = "run `ds-seq prepare` again"


@record
@dataclass(frozen=True)
class ShardCounts:
    """Size of one shard; token counts include the end symbols."""

    pairs: Positive
    src_tokens: Positive
    tgt_tokens: Count
    """0 in text of one side."""


@record
@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    size: Count
    sha256: str


@record
@dataclass(frozen=True)
class CorpusRecord:
    """A corpus: consecutive pairs of a split, which start a new shard where it is written.

    Attributes:
        name: its name in `data.corpora`.
        first_row: number of its first pair in the split, from 0.
        num_rows: number of its pairs.
        languages: source and target language.
        inputs: SHA-256 of its clean texts.
    """

    name: str
    first_row: Count
    num_rows: Positive
    languages: tuple[str, str]
    inputs: tuple[str, ...] = ()

    @property
    def rows(self) -> range:
        """Numbers of its pairs in the split."""
        return range(self.first_row, self.first_row + self.num_rows)


@record
@dataclass(frozen=True)
class Manifest:
    """Content of `<split>.manifest.json`.

    Attributes:
        vocab_hash: fingerprint of the tokenizers of the ids.
        vocab_size: vocabulary size.
        dtype: numpy name of the on-disk type of an id.
        languages: source and target language.
        shards: one entry per shard.
        files: records by file name.
        inputs: SHA-256 of the clean texts, so that a later run can detect changes.
        origin: what the clean texts and the vocabulary were made from.
        corpora: the corpora, in the order of their rows; empty if the split is one corpus without
            a name.
        version: version of the format.
        sides: 2 for pairs; 1 for text of one side, whose languages are twice the same.
    """

    vocab_hash: str
    vocab_size: Positive
    dtype: IdType
    languages: tuple[str, str]
    shards: Annotated[tuple[ShardCounts, ...], Field(min_length=1)]
    files: dict[FileName, FileRecord] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    origin: Origin = Origin()
    corpora: tuple[CorpusRecord, ...] = ()
    version: int = FORMAT_VERSION
    sides: NumSides = 2

    @property
    def pairs(self) -> int:
        """Number of sentence pairs in all shards."""
        return sum(shard.pairs for shard in self.shards)

    @property
    def src_tokens(self) -> int:
        """Number of tokens on the source side."""
        return sum(shard.src_tokens for shard in self.shards)

    @property
    def tgt_tokens(self) -> int:
        """Number of tokens on the target side."""
        return sum(shard.tgt_tokens for shard in self.shards)

    def write(self, path: Path) -> None:
        """Write JSON atomically: a reader sees the old file, the new one or none."""
        files.write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return JSON; from version 2 on, its last line is the SHA-256 of what stands before it."""
        content = {"version": self.version, **asdict(self)}
        if self.sides == 2:  # manifests of pairs stay as they were
            del content["sides"]
        if self.version == 1:
            del content["corpora"]
            return json.dumps(content, indent=1).encode() + b"\n"
        return files.sealed_json(content)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read JSON written by `write`.

        Raises:
            UserError: the file is missing, damaged or of a later version.
        """
        try:
            content = read_limited(path)
        except FileNotFoundError:
            raise UserError(_explain_missing(path)) from None
        version = parse_json(content, Versioned, path, _REMAKE)["version"]
        if not 1 <= version <= FORMAT_VERSION:
            raise UserError(
                f"{path}: has format version {version}, but at most {FORMAT_VERSION} can be read; "
                f"{_REMAKE}, or update ds_seq"
            )
        if version > 1 and not files.is_sealed(content):
            raise UserError(
                f"{path}: is damaged (its last line is not the SHA-256 of the others); copy it "
                f"again or {_REMAKE}"
            )
        manifest = parse_json(content, cls, path, _REMAKE)
        end = 0
        for corpus in manifest.corpora:
            if corpus.first_row != end:
                raise UserError(
                    f"{path}: is damaged (corpora: {corpus.name} starts at row "
                    f"{corpus.first_row:,} instead of {end:,}); {_REMAKE}"
                )
            end += corpus.num_rows
        if manifest.corpora and end != manifest.pairs:
            raise UserError(
                f"{path}: is damaged (corpora: have {end:,} of {manifest.pairs:,} pairs); {_REMAKE}"
            )
        return manifest

    def check_files(self, folder: Path, full: bool = False) -> None:
        """Compare the sizes of the files with their records, and with `full` every byte.

        Args:
            folder: folder of the files.
            full: whether to compare checksums, too.

        Raises:
            UserError: files are missing, truncated or changed; lists all of them.
        """
        problems = []
        for name in self.files:
            try:
                self.check_file(folder, name, full)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))

    def check_file(self, folder: Path, name: str, full: bool = False) -> None:
        """Compare one file with its record; see `check_files`."""
        path, expected = inside(folder, name), self.files[name]
        damage = files.check_file(path, expected.size, expected.sha256 if full else None)
        if damage == "missing":
            raise UserError(f"{path}: is missing; {_REMAKE}")
        if damage == "size":
            raise UserError(
                f"{path}: has {path.stat().st_size:,} bytes, but the manifest expects "
                f"{expected.size:,} (an interrupted copy?); copy it again or {_REMAKE}"
            )
        if damage == "content":
            raise UserError(
                f"{path}: its content has changed (its SHA-256 is not the manifest's); {_REMAKE}"
            )

    def check_names(self, folder: Path) -> None:
        """Look for all files in one listing of the folder.

        Raises:
            UserError: files are missing; names the first.
        """
        missing = self.files.keys() - {entry.name for entry in folder.iterdir()}
        if missing:
            more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise UserError(f"{folder / min(missing)}: is missing{more}; {_REMAKE}")


def _explain_missing(path: Path) -> str:
    if not path.parent.is_dir():
        return (
            f"{path.parent}: no such data folder; check data.dir, or make the folder with "
            "`ds-seq prepare`"
        )
    suffix = ".manifest.json"
    splits: Sequence[str] = sorted(
        other.name.removesuffix(suffix) for other in path.parent.glob(f"*{suffix}")
    )
    found = f"found here: {', '.join(splits)}" if splits else "the folder contains no shards"
    return f"{path}: no such manifest ({found}); make it with `ds-seq prepare`"
