"""The manifest of a folder of shards: its content, and checks that it is complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ds_seq.errors import UserError
from ds_seq.files import check_file, write_json

FORMAT_VERSION = 1
_REMAKE = "run `ds-seq prepare` again"


@dataclass(frozen=True)
class ShardCounts:
    """Size of one shard; token counts include the end symbols."""

    pairs: int
    src_tokens: int
    tgt_tokens: int


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    size: int
    sha256: str


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
        inputs: SHA-256 of the texts, so that a later run can detect changes.
    """

    vocab_hash: str
    vocab_size: int
    dtype: str
    languages: tuple[str, str]
    shards: tuple[ShardCounts, ...]
    files: dict[str, FileRecord] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

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
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(_explain_missing(path)) from None
        except ValueError:
            raise UserError(f"{path}: is damaged (not JSON); {_REMAKE}") from None
        version = raw.pop("version", None) if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: has format version {version}, but {FORMAT_VERSION} is needed; {_REMAKE}"
            )
        try:
            return cls(
                **{
                    **raw,
                    "languages": tuple(raw["languages"]),
                    "shards": tuple(ShardCounts(**shard) for shard in raw["shards"]),
                    "files": {name: FileRecord(**item) for name, item in raw["files"].items()},
                    "inputs": tuple(raw["inputs"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is damaged ({error}); {_REMAKE}") from None

    def check_files(self, folder: Path, full: bool = False) -> None:
        """Compare the sizes of the files with their records, and with `full` every byte.

        Raises:
            UserError: files are missing, truncated or changed; lists all of them.
        """
        problems = []
        for name, record in self.files.items():
            path = folder / name
            damage = check_file(path, record.size, record.sha256 if full else None)
            if damage == "missing":
                problems.append(f"{path}: is missing; {_REMAKE}")
            elif damage == "size":
                problems.append(
                    f"{path}: has {path.stat().st_size:,} bytes, but the manifest expects "
                    f"{record.size:,} (an interrupted copy?); copy it again or {_REMAKE}"
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
