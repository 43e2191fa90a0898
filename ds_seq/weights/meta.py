"""The JSON files of a run's checkpoints: the index of them all, and the file list of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from typing_extensions import NotRequired, TypedDict  # pydantic reads no others before 3.12

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.records import (
    Count,
    FileName,
    parse_json,
    read_limited,
    record,
)

T = TypeVar("T")

CHECKPOINTS = "checkpoints"  # folder of a run
INDEX_FILE = "index.json"  # in that folder: names the last and the best checkpoints
META_FILE = "checkpoint.json"
VOCAB_HASH_KEY = "ds_seq.vocab_hash"  # in META_FILE and in the header of an exported file
FORMAT_VERSION = 2  # 1: some of the experts' matrices are transposed
EMA: Final = "ema"  # kind of file with the average of the weights, see `train.ema`
RAW: Final = "raw"  # what the weights themselves are called where there is an average
KINDS: Final = ("weights", EMA, "optimizer", "criterion")  # of the files of a checkpoint
CHECKSUMS_KEY: Final = "sha256"  # in META_FILE: by file name; older checkpoints have none
NO_CHECKSUM = "0" * 64  # stands for the checksum of a file in that file while it is computed

_USE_ANOTHER = "use another checkpoint"


@record
class _Versioned(TypedDict):
    """What every version of the JSON file of a checkpoint has."""

    format_version: int


@record
class CheckpointFiles(TypedDict):
    """The part of the JSON file of a checkpoint that loading its tensors reads."""

    format_version: int
    files: dict[FileName, Count]
    """Size of each file in bytes."""
    sha256: NotRequired[dict[FileName, str]]
    """`CHECKSUMS_KEY`: SHA-256 of each file, and of the JSON file itself; see `write_meta`."""


@record
class IndexEntry(TypedDict):
    """A checkpoint in the index of a run, and its score if it was validated."""

    name: FileName
    score: NotRequired[float | None]


@record
class BestEntry(TypedDict):
    """A validated checkpoint in the index of a run."""

    name: FileName
    score: float


@record
class FormerBest(TypedDict):
    """A checkpoint that was one of the best by a score that has changed since."""

    name: FileName
    score: float
    by: str | None
    """Name of the score."""


@record
class CheckpointIndex(TypedDict):
    """The index of the checkpoints of a run: the last ones, oldest first, and the best ones."""

    last: list[IndexEntry]
    best: list[BestEntry]
    best_by: NotRequired[str]
    """Name of the score of `best`; older ones do not have it."""
    best_since: NotRequired[Count]
    """Update from which scores compare; without it, all do."""
    former_best: NotRequired[list[FormerBest]]
    """The best ones before the score changed, which are kept."""


def read_meta(folder: Path, kind: type[T] = CheckpointFiles) -> T:  # type: ignore[assignment]
    """Read the JSON file of a checkpoint folder.

    Args:
        folder: the checkpoint.
        kind: the part of the file that is needed.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or its format is not supported.
    """
    path = folder / META_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no checkpoint here ({META_FILE} is missing); check the path")
    content = read_limited(path)
    check_version(path, parse_json(content, _Versioned, path, _USE_ANOTHER)["format_version"])
    return parse_json(content, kind, path, _USE_ANOTHER)


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write the JSON file of a checkpoint folder, and add its own checksum to those in it.

    Raises:
        UserError: it cannot be written.
    """
    checksums = {**meta[CHECKSUMS_KEY], META_FILE: NO_CHECKSUM}
    text = json.dumps({**meta, CHECKSUMS_KEY: checksums}, indent=1) + "\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    files.write_text(folder / META_FILE, text.replace(NO_CHECKSUM, checksum))


def check_meta(folder: Path) -> None:
    """Compare the JSON file of a checkpoint folder with its own checksum, if it has one.

    Raises:
        UserError: it is damaged.
    """
    meta: CheckpointFiles = read_meta(folder)
    stored = meta.get(CHECKSUMS_KEY, {}).get(META_FILE)
    if stored is None:
        return
    content = read_limited(folder / META_FILE)
    before = content.replace(stored.encode(), NO_CHECKSUM.encode()) if stored else content
    if hashlib.sha256(before).hexdigest() != stored:
        raise UserError(
            f"{folder / META_FILE}: damaged: its content is not what was written (SHA-256 differs; "
            f"if you have changed it, remove {CHECKSUMS_KEY} from it); {_USE_ANOTHER}"
        )


def read_index(checkpoints: Path) -> CheckpointIndex:
    """Read the index of the checkpoints of a run.

    Args:
        checkpoints: folder of the checkpoints.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    path, without = checkpoints / INDEX_FILE, without_index(checkpoints)
    content = read_limited(path)
    index = parse_json(content, CheckpointIndex, path, without)
    known = CheckpointIndex.__annotations__
    # an older one has no checksum; a key that is not known is one whose name is damaged
    if not files.is_sealed(content) and not index.keys() <= known.keys():
        raise UserError(
            f"{path}: damaged: its content is not what was written (SHA-256 differs; if you have "
            f"changed it, remove {CHECKSUMS_KEY} from it); {without}"
        )
    return cast(CheckpointIndex, {key: value for key, value in index.items() if key in known})


def write_index(checkpoints: Path, index: Mapping[str, Any]) -> None:
    """Write the index of the checkpoints of a run, with its checksum.

    Raises:
        UserError: it cannot be written.
    """
    files.write_bytes(checkpoints / INDEX_FILE, files.sealed_json(index))


def known_checkpoints(checkpoints: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, whether the index holds them or not."""
    return sorted(path.parent.name for path in checkpoints.glob(f"update_*/{META_FILE}"))


def without_index(checkpoints: Path) -> str:
    """Return what a user can do without the index of a folder of checkpoints."""
    known = ", ".join(known_checkpoints(checkpoints)) or "update_..."
    return (
        f"name the checkpoints themselves ({known}), or let `ds-seq train --resume` write the "
        "file again"
    )


def check_version(path: Path, version: object) -> None:
    """Check that a file of weights has a format that this version of ds_seq reads.

    Raises:
        UserError: it has not.
    """
    known = range(1, FORMAT_VERSION + 1)
    if version not in known:
        raise UserError(
            f"{path}: checkpoint format {version}, but this version of ds_seq reads "
            f"{' and '.join(map(str, known))}; use the version of ds_seq that wrote it"
        )
