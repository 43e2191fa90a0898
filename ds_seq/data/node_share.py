"""Arrays that one process of a machine makes and the others read, without a copy each.

The order of an epoch takes hundreds of megabytes for tens of millions of pairs, and is the same on
all ranks. The first rank of each machine makes it in anonymous memory (`memfd_create`) and writes
down in a small file where that is; the others map it read-only. The kernel frees the memory when
nobody maps it any more, so nothing is left behind by a run that is killed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.records import Count, Positive, read_json, record

_KEPT = 3  # arrays of the last names that others may still ask for
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 600.0  # then a rank makes the arrays for itself
_WIDTH = 64  # bytes; arrays begin at multiples of it


@record
class _Piece(TypedDict):
    """An array in shared memory."""

    dtype: str
    size: Count
    offset: Count


@record
class _Note(TypedDict):
    """Where shared arrays are: process, file descriptor, size in bytes, and the arrays."""

    process: Positive
    descriptor: Count
    size: Positive
    pieces: list[_Piece]


Make = Callable[[], Sequence[NDArray]]
"""Returns one-dimensional arrays, the same on every rank."""


class NodeShare:
    """Shares arrays among the ranks of one machine.

    Args:
        token: name of the run, the same on all its ranks and on no other run.
        makes: whether this rank makes the arrays.
    """

    def __init__(self, token: str, makes: bool) -> None:
        self._folder = Path(tempfile.gettempdir()) / f"ds_seq-{os.getuid()}-{token}"
        self._makes = makes
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[int, list[NDArray]]] = {}
        if makes:
            with files.writing(self._folder):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_json(self._folder / "maker.json", {"process": os.getpid()})

    def get(self, name: str, make: Make) -> list[NDArray]:
        """Return the arrays with a name; they must not be written to.

        A rank that cannot have those of the other makes them for itself.
        """
        with self._lock:
            if name in self._kept:
                return self._kept[name][1]
            arrays = self._publish(name, make) if self._makes else self._wait(name)
            if arrays is None:
                return list(make())
            while len(self._kept) > _KEPT:
                self._forget(next(iter(self._kept)))
            return arrays

    def _publish(self, name: str, make: Make) -> list[NDArray]:
        made = [np.ascontiguousarray(array) for array in make()]
        pieces, offset = list[_Piece](), 0
        for array in made:
            pieces.append({"dtype": array.dtype.str, "size": len(array), "offset": offset})
            offset += -(-max(array.nbytes, 1) // _WIDTH) * _WIDTH
        descriptor = os.memfd_create(f"ds_seq-{name}")
        os.ftruncate(descriptor, offset)
        room = mmap.mmap(descriptor, offset)
        shared = _views(room, pieces)
        for target, array in zip(shared, made, strict=True):
            target[:] = array
            target.flags.writeable = False
        self._kept[name] = descriptor, shared
        note = {
            "process": os.getpid(),
            "descriptor": descriptor,
            "size": offset,
            "pieces": pieces,
        }
        files.write_json(self._folder / f"{name}.json", note)
        return shared

    def _wait(self, name: str) -> list[NDArray] | None:
        path, end = self._folder / f"{name}.json", time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                note = read_json(path, _Note, "remove it")
                arrays = _opened(note)
            except FileNotFoundError:
                if not self._maker_lives():
                    return None
                time.sleep(_POLL_SECONDS)
                continue
            except (UserError, OSError):  # not our machine after all, or it has ended
                return None
            self._kept[name] = -1, arrays
            return arrays
        return None

    def _maker_lives(self) -> bool:
        try:
            note = read_json(self._folder / "maker.json", dict[str, int], "remove it")
        except FileNotFoundError:
            return True  # it has not begun
        except UserError:
            return False
        return Path(f"/proc/{note['process']}").exists()

    def _forget(self, name: str) -> None:
        descriptor, _ = self._kept.pop(name)
        if descriptor >= 0:
            os.close(descriptor)
            (self._folder / f"{name}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what this rank has written; arrays that are in use stay valid."""
        with self._lock:
            for name in list(self._kept):
                self._forget(name)
            if self._makes and self._folder.exists():
                (self._folder / "maker.json").unlink(missing_ok=True)
                self._folder.rmdir()


def _views(room: mmap.mmap, pieces: Sequence[_Piece]) -> list[NDArray]:
    return [
        np.frombuffer(room, np.dtype(piece["dtype"]), piece["size"], piece["offset"])
        for piece in pieces
    ]


def _opened(note: _Note) -> list[NDArray]:
    """Map the memory of another process of the same user."""
    path = f"/proc/{note['process']}/fd/{note['descriptor']}"
    try:
        with open(path, "rb") as file:
            room = mmap.mmap(file.fileno(), note["size"], access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: has gone") from None
    return _views(room, note["pieces"])
