"""Weights on disk: safetensors files that can be read by any number of ranks.

A checkpoint is a folder of `<kind>.<n>.safetensors` files and a JSON file that lists them with
their sizes. The key of a dense tensor is its name, the key of an expert is the name and the global
expert index (`encoder.layers.1.feed_forward.experts.w1.5`), so that every expert-parallel size can
find its experts. An export is one safetensors file in which the experts of a layer are one tensor.
Both are read as a `TensorSource`.

Each file has a SHA-256: of a checkpoint in its JSON file, of an export in its own header, where it
is that of the file with 64 zeros in its place. Whoever has read the tensors calls `verify`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.moe.experts import Experts
from ds_seq.records import inside
from ds_seq.weights.meta import (
    CHECKSUMS_KEY,
    NO_CHECKSUM,
    CheckpointFiles,
    check_meta,
    check_version,
    read_meta,
)

FORMAT_KEY = "ds_seq.format"  # in the header of an exported file; version 1 had none
_CHECKSUM_FIELD = b'"ds_seq.sha256":"'  # in the header of an exported file; older ones have none
_READ_BYTES = 1 << 20


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
        metadata: metadata for the header, to which the file's checksum is added; None: a file of a
            checkpoint, whose checksum is stored elsewhere.

    Raises:
        OSError: the file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # that of the umask; safetensors replaces the file by a private one
    header = None
    if metadata is not None:
        field = _CHECKSUM_FIELD.decode().split('"')[1]
        header = {**metadata, field: NO_CHECKSUM}
    try:
        save_file(dict(tensors), str(path), header)
    except SafetensorError as error:  # raised on a full disk, too
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise OSError(f"{error}; is the disk full?") from error
    path.chmod(mode)
    if header is not None:
        place = _checksum_place(path)
        assert place is not None, "safetensors writes compact JSON"
        checksum = files.fingerprint(path).encode()
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(checksum)


def _checksum_place(path: Path) -> int | None:
    """Return the position of an exported file's checksum; None if it has none."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        found = file.read(min(length, path.stat().st_size)).find(_CHECKSUM_FIELD)
    return None if found < 0 else 8 + found + len(_CHECKSUM_FIELD)


def check_export(path: Path) -> bool:
    """Compare an exported file with the checksum in its header.

    Returns:
        Whether it has a checksum, which files of earlier versions do not.

    Raises:
        UserError: the file is damaged.
    """
    place = _checksum_place(path)
    if place is None:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(place))
        stored = file.read(len(NO_CHECKSUM))
        digest.update(NO_CHECKSUM.encode())
        while block := file.read(_READ_BYTES):
            digest.update(block)
    if digest.hexdigest().encode() != stored:
        raise UserError(
            f"{path}: damaged: its content is not what was written (SHA-256 differs); copy or "
            "export it again"
        )
    return True


def check_checkpoint(folder: Path, part: int = 0, parts: int = 1) -> bool:
    """Compare the files of a checkpoint with the sizes and checksums in its JSON file, and that.

    Args:
        folder: folder of the checkpoint.
        part: which part of the files to check, so that several processes can share the work.
        parts: number of parts.

    Returns:
        Whether it has checksums, which checkpoints of earlier versions do not.

    Raises:
        UserError: a file is missing or damaged.
    """
    meta: CheckpointFiles = read_meta(folder)
    check_meta(folder)
    checksums = meta.get(CHECKSUMS_KEY, {})
    for name, size in sorted(meta["files"].items())[part::parts]:
        _check_part(inside(folder, name), size, checksums.get(name))
    return bool(checksums)


def _check_part(path: Path, size: int, checksum: str | None) -> None:
    """Compare a file of a checkpoint with its size and its checksum, if there is one."""
    damage = files.check_file(path, size, checksum)
    if damage == "missing":
        raise UserError(f"{path}: missing; use another checkpoint")
    if damage == "size":
        raise UserError(
            f"{path}: {path.stat().st_size} bytes instead of {size} (truncated?); use another "
            "checkpoint"
        )
    if damage == "content":
        raise UserError(
            f"{path}: damaged: its content is not what was written (SHA-256 differs); use another "
            "checkpoint"
        )


class TensorSource(Protocol):
    """Named tensors on disk, with experts by global index.

    Attributes:
        path: path for messages.
        files: the files with the tensors.
    """

    path: Path
    files: list[Path]

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

    def verify(self) -> None:
        """Compare the files with their checksums, which older files do not have.

        Called after the tensors have been read: what is wrong with a tensor says more.

        Raises:
            UserError: a file is damaged.
        """


class TensorFolder:
    """Read access to the tensors of one kind (`weights`, `optimizer`) of a checkpoint folder.

    Args:
        folder: folder of the checkpoint.
        kind: kind of tensors, the first part of the file names.
        checked: whether `check_checkpoint` has compared the checksums, so that `verify` need not.
        replaced_by: kind of tensors that take the place of those of the same name.
        without: names of modules whose tensors are left out.

    Raises:
        UserError: a file is missing, truncated or damaged.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        checked: bool = False,
        replaced_by: str | None = None,
        without: Sequence[str] = (),
    ) -> None:
        self.path = folder
        self._where: dict[str, Any] = {}
        left_out = tuple(f"{name}." for name in without)
        meta: CheckpointFiles = read_meta(folder)
        self._version = meta["format_version"]
        sizes: dict[str, int] = {}
        for each in (kind, replaced_by):
            sizes |= {n: s for n, s in sorted(meta["files"].items()) if n.split(".")[0] == each}
        self.files = [folder / name for name in sizes]
        checksums = {} if checked else meta.get(CHECKSUMS_KEY, {})
        self._unchecked = [(folder / n, sizes[n], checksums[n]) for n in sizes if n in checksums]
        for name, size in sizes.items():
            path = inside(folder, name)
            _check_part(path, size, None)
            try:
                handle = safe_open(str(path), framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); use another checkpoint") from error
            for key in handle.keys():  # noqa: SIM118 - not a dict
                if not key.startswith(left_out):
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

    def verify(self) -> None:
        """See `TensorSource.verify`."""
        for path, size, checksum in self._unchecked:
            _check_part(path, size, checksum)
        self._unchecked = []


class TensorFile:
    """Read access to one safetensors file with stacked experts.

    Args:
        path: file to read.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, [path]
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
        try:
            self._file: Any = safe_open(str(path), framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); export it again") from error
        self._keys = set(self._file.keys())
        version = self.metadata().get(FORMAT_KEY, "1")
        self._version = int(version) if version.isdecimal() else 0
        check_version(path, self._version)

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

    def verify(self) -> None:
        """See `TensorSource.verify`."""
        check_export(self.path)


def _num_values(file: Any, key: str) -> int:
    return math.prod(file.get_slice(key).get_shape())


def _turned(experts: Tensor, name: str, version: int) -> Tensor:
    """Convert experts of a file of format `version` to the current layout."""
    turned = tuple(f".experts.{part}" for part in Experts.turned_since_format_1)
    return experts.mT.contiguous() if version == 1 and name.endswith(turned) else experts
