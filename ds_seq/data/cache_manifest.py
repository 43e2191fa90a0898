"""The manifest of a teacher cache: its settings, and the checksums of its parts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

from ds_seq import files
from ds_seq.data.manifest import IdType
from ds_seq.data.shards import files_fingerprint
from ds_seq.data.truncation import UNCUT, Limits
from ds_seq.errors import UserError
from ds_seq.records import Count, Positive, Versioned, parse_json, read_limited, record

FORMAT_VERSION = 2
SUFFIX = ".teacher.json"
PLAN_SUFFIX = ".teacher.plan.json"
REMAKE = "delete the file and run `ds-seq teacher-cache` again"
StoredType = Literal["float16", "float32"]
"""On-disk types of a log-probability."""


@record
class _FirstVersion(TypedDict):
    """What a manifest of version 1 has in place of `source`: SHA-256 by file."""

    shards: dict[str, str]


@record
@dataclass(frozen=True)
class TeacherRecord:
    """A model whose outputs are in a cache.

    Attributes:
        name: name given by the user.
        source: checkpoint or file of its weights.
        precision: number format of its computation.
        weights: digest of its weights.
    """

    name: str = field(compare=False)
    source: str = field(compare=False)
    precision: str
    weights: str


@record
@dataclass(frozen=True)
class CacheManifest:
    """Content of `<split>.teacher.json`.

    Attributes:
        vocab_hash: fingerprint of the vocabulary of all ids.
        top_k: K, number of tokens per record.
        ids: numpy name of the type of an id.
        log_probs: numpy name of the type of a log-probability.
        teachers: one teacher, or those of an ensemble.
        max_length: longest sentence, on either side, that all teachers support.
        left_out: number of pairs with a longer sentence.
        source: fingerprint of the pairs.
        first: first pair of each part, followed by the number of pairs.
        cut: at what lengths sources and targets were cut; None: not at all.
        checksums: SHA-256 of each part; empty in unfinished caches and those of earlier versions.
    """

    vocab_hash: str
    top_k: Positive
    ids: IdType
    log_probs: StoredType
    teachers: tuple[TeacherRecord, ...]
    max_length: Positive
    left_out: Count
    source: str
    first: tuple[Count, ...]
    checksums: tuple[str, ...] = field(default=(), compare=False)
    cut: Limits = UNCUT

    @property
    def record(self) -> np.dtype:
        """Type of the record of a token: `ids` (K,) and `log_probs` (K,)."""
        kinds = {
            name: np.dtype(kind)
            for name, kind in (("ids", self.ids), ("log_probs", self.log_probs))
        }
        return np.dtype([(n, k.newbyteorder("<"), (self.top_k,)) for n, k in kinds.items()])

    def write(self, path: Path) -> None:
        """Write JSON atomically."""
        content = {"version": FORMAT_VERSION, **asdict(self)}
        if self.cut == UNCUT:
            del content["cut"]  # which earlier versions do not know
        files.write_json(path, content)

    @classmethod
    def read(cls, path: Path) -> CacheManifest:
        """Inverse of `write`.

        Raises:
            UserError: the file is damaged, or has another format version.
        """
        content = read_limited(path)
        version = parse_json(content, Versioned, path, REMAKE)["version"]
        if version not in (1, FORMAT_VERSION):
            raise UserError(
                f"{path}: has format version {version}, but {FORMAT_VERSION} is needed; {REMAKE}"
            )
        if version == 1:  # stored checksums in place of the fingerprint
            old = parse_json(content, _FirstVersion, path, REMAKE)
            content = json.dumps({**old, "source": files_fingerprint(old["shards"])}).encode()
        manifest = parse_json(content, cls, path, REMAKE)
        if manifest.checksums and len(manifest.checksums) != len(manifest.first) - 1:
            raise UserError(f"{path}: is damaged (checksums: not one per part); {REMAKE}")
        return manifest


def part_path(folder: Path, split: str, part: int) -> Path:
    """Return the path of a part of a cache."""
    return folder / f"{split}.teacher.{part:05d}.bin"


def cached_splits(folder: Path) -> list[str]:
    """Return the splits that have a finished cache in a folder."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


def check_cache(folder: Path, split: str) -> bool:
    """Compare all parts of a finished cache with their checksums.

    Returns:
        Whether there are checksums, which caches of earlier versions do not have.

    Raises:
        UserError: a part is missing or damaged.
    """
    manifest = CacheManifest.read(folder / f"{split}{SUFFIX}")
    for part in range(len(manifest.first) - 1):
        path = part_path(folder, split, part)
        if not path.is_file():
            raise UserError(f"{path}: missing; copy it again, or {REMAKE}")
        checksum = manifest.checksums[part] if manifest.checksums else None
        if files.check_file(path, path.stat().st_size, checksum):
            raise UserError(
                f"{path}: its content has changed (SHA-256 differs); copy it again, or run "
                "`ds-seq teacher-cache` again"
            )
    return bool(manifest.checksums)
