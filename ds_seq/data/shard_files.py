"""Names, types and mapping of the files of a split; the format is in prepare_data/README.md."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.manifest import IdType
from ds_seq.errors import UserError

SIDES = ("src", "tgt")
ONE_SIDE = ("txt",)
OFFSET = np.dtype("<i8")
"""Entries of the `.idx` files of the first format."""
LENGTH = np.dtype("<i4")
"""Entries of the file of lengths, (N, 2) for N pairs."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def side_names(num_sides: int) -> tuple[str, ...]:
    """Return what the names of the files of each side have."""
    return SIDES if num_sides == len(SIDES) else ONE_SIDE


def manifest_path(folder: str | Path, split: str) -> Path:
    """Return the path of the manifest of a split."""
    return Path(folder) / f"{split}.manifest.json"


def lengths_path(folder: Path, split: str) -> Path:
    """Return the path of the lengths of all pairs of a split."""
    return folder / f"{split}.lengths"


def shard_path(folder: Path, split: str, shard: int, side: str) -> Path:
    """Return the path of one side of a shard."""
    return folder / f"{split}.{shard:04d}.{side}.bin"


def files_fingerprint(checksums: Mapping[str, str]) -> str:
    """Combine the SHA-256 of several files, by name, into one fingerprint."""
    lines = "".join(f"{name} {checksums[name]}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def id_type(vocab_size: int) -> IdType:
    """Return the smallest on-disk type that can represent every id of a vocabulary."""
    return "uint16" if vocab_size < 1 << 16 else "uint32"


def id_dtype(vocab_size: int) -> np.dtype:
    """Return this type with the byte order on disk."""
    return np.dtype(id_type(vocab_size)).newbyteorder("<")


class _Mapping:
    """The bytes of a file in memory, as numpy's array interface.

    Unlike `numpy.memmap`, it keeps no file open: ten thousand shards would exceed the number of
    files that a process may have open.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        with open(path, "rb") as file:
            self._address = _libc.mmap(
                None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0
            )
        if self._address in (None, ctypes.c_void_p(-1).value):
            self._size = 0
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (self._address, True),
        }

    def __del__(self) -> None:
        if self._size:
            _libc.munmap(self._address, self._size)


def mapped(path: Path, dtype: np.dtype, length: int) -> NDArray[Any]:
    """Map a file of `length` >= 1 numbers into memory, read-only.

    Raises:
        UserError: it does not exist, cannot be read or has another size.
    """
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size != length * dtype.itemsize:
            raise UserError(
                f"{path}: has {size:,} bytes, but its shard has {length:,} entries of "
                f"{dtype.itemsize} bytes; copy it again or run `ds-seq prepare` again"
            )
        return np.asarray(_Mapping(path, size)).view(dtype)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
