"""The files of a Hugging Face folder: settings, and where its tensors are; nothing is run."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ds_seq.errors import UserError
from ds_seq.records import inside, read_limited

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_MOST_BYTES = 1 << 26
_MOST_HEADER = 100_000_000  # as safetensors allows
# number formats of safetensors; bfloat16 is the upper half of a float32
_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "BF16": ""}


def read_settings(folder: Path, name: str, is_needed: bool = True) -> dict[str, Any]:
    """Read a JSON file of the folder.

    Raises:
        UserError: it is damaged, or needed and missing.
    """
    path = folder / name
    if not path.is_file():
        if not is_needed:
            return {}
        what = f"has no {name}" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; give a folder that `save_pretrained` wrote")
    try:
        content = json.loads(read_limited(path, _MOST_BYTES))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object; copy it again")
    return content


class _Place(NamedTuple):
    """Where a tensor is in its file, in bytes, and what it is."""

    dtype: str
    shape: list[int]
    start: int
    stop: int


class StoredTensors(Mapping[str, Path]):
    """The tensors of a folder: name -> file, with shapes and, where asked for, values.

    A model of several files has an index; the head of a file is read when one of its tensors is
    asked for.

    Args:
        folder: the folder.

    Raises:
        UserError: a file is missing or damaged; also when a tensor is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._heads: dict[Path, dict[str, _Place]] = {}
        if (folder / INDEX).is_file():
            index = read_settings(folder, INDEX).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise UserError(f"{folder / INDEX}: damaged (no weight_map); copy it again")
            self._where = {str(key): inside(folder, str(name)) for key, name in index.items()}
        else:
            whole = _whole_file(folder)
            self._where = dict.fromkeys(self._head(whole), whole)
        for path in set(self._where.values()):
            if not path.is_file():
                raise UserError(f"{path}: missing; copy the whole folder again")

    def __getitem__(self, name: str) -> Path:
        return self._where[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor."""
        return self._place(name).shape

    def row(self, name: str, number: int) -> list[float]:
        """Return a row of a matrix."""
        place, path = self._place(name), self._where[name]
        if place.dtype not in _FORMATS or len(place.shape) != 2:
            raise UserError(f"{path}: {name} is no matrix of floating-point numbers")
        width = (place.stop - place.start) // max(place.shape[0], 1)
        with path.open("rb") as file:
            file.seek(place.start + number * width)
            content = file.read(width)
        return _numbers(content, place.dtype)

    def has_values(self, name: str) -> bool:
        """Return whether any value of a tensor is not 0."""
        place = self._place(name)
        with self._where[name].open("rb") as file:
            file.seek(place.start)
            content = file.read(place.stop - place.start)
        return content.count(0) < len(content)

    def is_same(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same values; reads them as far as they are equal."""
        places = [self._place(name) for name in (first, second)]
        if places[0].dtype != places[1].dtype or places[0].shape != places[1].shape:
            return False
        step, size = 1 << 20, places[0].stop - places[0].start
        with self._where[first].open("rb") as left, self._where[second].open("rb") as right:
            maps = [mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) for f in (left, right)]
            for begin in range(0, size, step):
                length = min(step, size - begin)
                parts = [
                    each[place.start + begin : place.start + begin + length]
                    for each, place in zip(maps, places, strict=True)
                ]
                if parts[0] != parts[1]:
                    return False
        return True

    def _place(self, name: str) -> _Place:
        path = self._where[name]
        place = self._head(path).get(name)
        if place is None:
            raise UserError(f"{path}: damaged (has no {name}); copy it again")
        return place

    def _head(self, path: Path) -> dict[str, _Place]:
        if path not in self._heads:
            self._heads[path] = _read_head(path)
        return self._heads[path]


def _read_head(path: Path) -> dict[str, _Place]:
    """Read the head of a safetensors file: 8 bytes, its length, and JSON.

    Raises:
        UserError: it is missing or damaged, or the file ends before its last tensor.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MOST_HEADER, size):
                raise ValueError("no safetensors file")
            content = json.loads(file.read(length))
        content.pop("__metadata__", None)
        places = {name: _place(entry, 8 + length, size) for name, entry in content.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; copy the whole folder again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
    return places


def _place(entry: Mapping[str, Any], base: int, size: int) -> _Place:
    start, stop = (base + int(offset) for offset in entry["data_offsets"])
    shape = [int(length) for length in entry["shape"]]
    if not base <= start <= stop <= size or min(shape, default=0) < 0:
        raise ValueError("a tensor is outside the file")
    if math.prod(shape) and stop == start:
        raise ValueError("a tensor has no values")
    return _Place(str(entry["dtype"]), shape, start, stop)


def _numbers(content: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        halves = [content[i : i + 2] for i in range(0, len(content), 2)]
        content, dtype = b"".join(b"\0\0" + half for half in halves), "F32"
    letter = _FORMATS[dtype]
    return list(struct.unpack(f"<{len(content) // struct.calcsize(letter)}{letter}", content))


def _whole_file(folder: Path) -> Path:
    if not (folder / _WHOLE).is_file() and (folder / _PICKLED).is_file():
        raise UserError(
            f"{folder}: has only {_PICKLED}, which could run code; let transformers write "
            f"{_WHOLE}: `AutoModel.from_pretrained(...).save_pretrained(...)`"
        )
    if not (folder / _WHOLE).is_file():
        raise UserError(f"{folder}: has no {_WHOLE}; give a folder that `save_pretrained` wrote")
    return folder / _WHOLE
