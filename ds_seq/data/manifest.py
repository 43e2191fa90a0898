"""The manifest of a folder of shards: its content, and checks that it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ds_seq.data.origin import Origin
from ds_seq.errors import UserError
from ds_seq.files import check_file, write_json
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

FORMAT_VERSION = 1
IdType = Literal["uint16", "uint32"]
"""On-disk types of a token id."""
_REMAKE = "run `ds-seq prepare` again"


@record
@dataclass(frozen=True)
class ShardCounts:
    """Size of one shard; token counts include the end symbols."""

    pairs: Positive
    src_tokens: Positive
    tgt_tokens: Positive


@record
@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    size: Count
    sha256: str


@record
@dataclass(frozen=True)
class CorpusRecord:
    """A corpus: consecutive pairs of a split.

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
        write_json(path, {"version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read JSON written by `write`."""
        try:
            content = read_limited(path)
        except FileNotFoundError:
            raise UserError(_explain_missing(path)) from None
        version = parse_json(content, Versioned, path, _REMAKE)["version"]
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: has format version {version}, but {FORMAT_VERSION} is needed; {_REMAKE}"
            )
        return parse_json(content, cls, path, _REMAKE)

    def check_files(self, folder: Path, full: bool = False) -> None:
        """Compare the sizes of the files with their records, and with `full` every byte.

        Raises:
            UserError: files are missing, truncated or changed; lists all of them.
        """
        problems = []
        for name, expected in self.files.items():
            path = inside(folder, name)
            damage = check_file(path, expected.size, expected.sha256 if full else None)
            if damage == "missing":
                problems.append(f"{path}: is missing; {_REMAKE}")
            elif damage == "size":
                problems.append(
                    f"{path}: has {path.stat().st_size:,} bytes, but the manifest expects "
                    f"{expected.size:,} (an interrupted copy?); copy it again or {_REMAKE}"
                )
            elif damage == "content":
                problems.append(
                    f"{path}: its content has changed (its SHA-256 is not the manifest's); "
                    f"{_REMAKE}"
                )
        if problems:
            raise UserError("\n".join(problems))


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
