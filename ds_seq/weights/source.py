"""Weights on disk: safetensors files that can be read by any number of ranks.

A checkpoint is a folder of `<kind>.<n>.safetensors` files and a JSON file that lists them with
their sizes. The key of a dense tensor is its name, the key of an expert is the name and the global
expert index (`encoder.layers.1.feed_forward.experts.w1.5`), so that every expert-parallel size can
find its experts. An export is one safetensors file in which the experts of a layer are one tensor.
Both are read as a `TensorSource`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import NotRequired, TypedDict  # pydantic reads no others before 3.12

from ds_seq.errors import UserError
from ds_seq.moe.experts import Experts
from ds_seq.records import (
    Count,
    FileName,
    inside,
    parse_json,
    read_json,
    read_limited,
    record,
)

T = TypeVar("T")

CHECKPOINTS = "checkpoints"  # folder of a run
INDEX_FILE = "index.json"  # in that folder: names the last and the best checkpoints
META_FILE = "checkpoint.json"
VOCAB_HASH_KEY = "ds_seq.vocab_hash"  # in META_FILE and in the header of an exported file
FORMAT_VERSION = 2  # 1: some of the experts' matrices are transposed
FORMAT_KEY = "ds_seq.format"  # in the header of an exported file; version 1 had none

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


@record
class IndexEntry(TypedDict):
    """A checkpoint in the index of a run, and its score if it was validated."""

    name: FileName
    score: NotRequired[float | None]


@record
class CheckpointIndex(TypedDict):
    """The index of the checkpoints of a run: the last ones, oldest first, and the best ones."""

    last: list[IndexEntry]
    best: list[IndexEntry]


def expert_key(name: str, expert: int) -> str:
    """Return the key of one expert's slice of the parameter `name`."""
    return f"{name}.{expert}"


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Args:
        tensors: tensors by name; no two may share memory.
        path: file to write.
        metadata: metadata for the header.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), str(path), None if metadata is None else dict(metadata))
    except SafetensorError as error:  # raised on a full disk, too
        raise OSError(f"{error}; is the disk full?") from error


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
    _check_version(path, parse_json(content, _Versioned, path, _USE_ANOTHER)["format_version"])
    return parse_json(content, kind, path, _USE_ANOTHER)


def read_index(checkpoints: Path) -> CheckpointIndex:
    """Read the index of the checkpoints of a run.

    Args:
        checkpoints: folder of the checkpoints.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    return read_json(
        checkpoints / INDEX_FILE, CheckpointIndex, "name the checkpoints themselves (update_...)"
    )


def _check_version(path: Path, version: object) -> None:
    known = range(1, FORMAT_VERSION + 1)
    if version not in known:
        raise UserError(
            f"{path}: checkpoint format {version}, but this version of ds_seq reads "
            f"{' and '.join(map(str, known))}; use the version of ds_seq that wrote it"
        )


class TensorSource(Protocol):
    """Named tensors on disk, with experts by global index.

    Attributes:
        path: path for messages.
    """

    path: Path

    def keys(self) -> set[str]:
        """Return all keys, in the source's format for experts."""

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        """Return the keys of the tensor `name`, which has `num_experts` experts or none."""

    def num_experts(self, name: str) -> int:
        """Return the number of experts of the tensor `name`; 0 if there is no such tensor."""

    def num_values(self) -> int:
        """Return the number of values of all tensors; does not read them."""

    def read(self, key: str) -> Tensor:
        """Read one tensor to the CPU.

        Raises:
            UserError: there is no such tensor.
        """

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """Read the tensor `name`; if it has experts, `num_experts` of them from `first_expert`.

        Raises:
            UserError: the tensor or one of its experts is missing.
        """


class TensorFolder:
    """Read access to the tensors of one kind (`weights`, `optimizer`) of a checkpoint folder.

    Args:
        folder: folder of the checkpoint.
        kind: kind of tensors, the first part of the file names.

    Raises:
        UserError: a file is missing, truncated or damaged.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.path = folder
        self._where: dict[str, Any] = {}
        meta: CheckpointFiles = read_meta(folder)
        self._version = meta["format_version"]
        sizes = {n: s for n, s in meta["files"].items() if n.split(".")[0] == kind}
        for name, size in sorted(sizes.items()):
            path = inside(folder, name)
            if not path.is_file():
                raise UserError(f"{path}: missing; the checkpoint is incomplete, use another one")
            if path.stat().st_size != size:
                raise UserError(
                    f"{path}: {path.stat().st_size} bytes instead of {size}; "
                    "the file is truncated, use another checkpoint"
                )
            try:
                handle = safe_open(str(path), framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); use another checkpoint") from error
            for key in handle.keys():  # noqa: SIM118 - not a dict
                self._where[key] = handle

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def keys(self) -> set[str]:
        """Return all keys of this kind."""
        return set(self._where)

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        """See `TensorSource.keys_of`."""
        return [name] if num_experts is None else [expert_key(name, e) for e in range(num_experts)]

    def num_experts(self, name: str) -> int:
        """See `TensorSource.num_experts`."""
        count = 0
        while expert_key(name, count) in self._where:
            count += 1
        return count

    def num_values(self) -> int:
        """See `TensorSource.num_values`."""
        return sum(_num_values(handle, key) for key, handle in self._where.items())

    def read(self, key: str) -> Tensor:
        """See `TensorSource.read`."""
        if key not in self._where:
            raise UserError(
                f"{self.path}: has no tensor {key!r}; the checkpoint belongs to another model"
            )
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """See `TensorSource.read_stacked`."""
        if first_expert is None:
            return self.read(name)
        ids = range(first_expert, first_expert + num_experts)
        rows = torch.stack([self.read(expert_key(name, expert)) for expert in ids])
        return _turned(rows, name, self._version)


class TensorFile:
    """Read access to one safetensors file with stacked experts.

    Args:
        path: file to read.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
        try:
            self._file: Any = safe_open(str(path), framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); export it again") from error
        self._keys = set(self._file.keys())
        version = self.metadata().get(FORMAT_KEY, "1")
        self._version = int(version) if version.isdecimal() else 0
        _check_version(path, self._version)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the header."""
        return dict(self._file.metadata() or {})

    def keys(self) -> set[str]:
        """See `TensorSource.keys`."""
        return set(self._keys)

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        """See `TensorSource.keys_of`."""
        return [name]

    def num_experts(self, name: str) -> int:
        """See `TensorSource.num_experts`."""
        shape = self._file.get_slice(name).get_shape() if name in self._keys else [0]
        return int(shape[0]) if shape else 0

    def num_values(self) -> int:
        """See `TensorSource.num_values`."""
        return sum(_num_values(self._file, key) for key in self._keys)

    def read(self, key: str) -> Tensor:
        """See `TensorSource.read`."""
        return self.read_stacked(key, None, 0)

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """See `TensorSource.read_stacked`; the other experts' bytes are not read."""
        if name not in self._keys:
            raise UserError(f"{self.path}: has no tensor {name!r}; it belongs to another model")
        if first_expert is None:
            whole: Tensor = self._file.get_tensor(name)
            return whole
        rows: Tensor = self._file.get_slice(name)[first_expert : first_expert + num_experts]
        return _turned(rows, name, self._version)


def _num_values(file: Any, key: str) -> int:
    return math.prod(file.get_slice(key).get_shape())


def _turned(experts: Tensor, name: str, version: int) -> Tensor:
    """Convert experts of a file of format `version` to the current layout."""
    turned = tuple(f".experts.{part}" for part in Experts.turned_since_format_1)
    return experts.mT.contiguous() if version == 1 and name.endswith(turned) else experts
