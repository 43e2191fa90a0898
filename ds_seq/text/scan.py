"""Read a text once: its checksum, its number of lines, and where its lines begin."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import NamedTuple

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.names import COMPRESSED
from ds_seq.records import unreadable
from ds_seq.text.opening import BLOCK, explain_missing

BLOCK_LINES = 20_000
"""Lines that are cleaned or encoded at once, by one process; scans know where each block begins."""
_SCAN = "scan"
_FEW, _MOST_THREADS = 2, 4


class Scan(NamedTuple):
    """What one pass over a text finds.

    Attributes:
        sha256: SHA-256 of the file, a byte order mark included.
        lines: number of lines, the last of which need not have an end.
        step: number of lines of a block.
        offsets: place in bytes of the first line of each block, and the end of the text.
    """

    sha256: str
    lines: int
    step: int
    offsets: tuple[int, ...]


class Scanner:
    """Makes a `Scan` of a text that passes by.

    Args:
        step: number of lines of a block.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._digest = hashlib.sha256()
        self._offsets: list[int] = []
        self._lines = self._place = 0
        self._last = b"\n"

    def update(self, content: bytes) -> None:
        """Read on; a byte order mark must be whole."""
        self._digest.update(content)
        if not self._offsets:
            self._place = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
            self._offsets.append(self._place)
            content = content[self._place :]
        if not content:
            return
        count = content.count(b"\n")
        first = self._step - 1 - self._lines % self._step
        if first < count:
            self._offsets += [
                self._place + 1 + end for end in _line_ends(content, first, self._step)
            ]
        self._lines += count
        self._place += len(content)
        self._last = content[-1:]

    def finish(self) -> Scan:
        """Return what has been found."""
        offsets = self._offsets or [0]
        if offsets[-1] != self._place:
            offsets = [*offsets, self._place]
        lines = self._lines + (self._last != b"\n")
        return Scan(self._digest.hexdigest(), lines, self._step, tuple(offsets))


def _line_ends(content: bytes, first: int, step: int) -> list[int]:
    """Return the places of every `step`-th line end, beginning with number `first`."""
    import numpy as np  # which `ds-seq check` does without

    ends: list[int] = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))[
        first::step
    ].tolist()
    return ends


def is_compressed(path: Path) -> bool:
    """Return whether the lines of a file can only be found by decompressing it."""
    return path.suffix in COMPRESSED


def scan_text(path: Path, step: int = BLOCK_LINES) -> Scan:
    """Scan a file that is not compressed; inside `files.remembering`, it is read once.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    try:
        known: Scan | None = files.recall(path, _SCAN)
        if known is not None and known.step == step:
            return known
        scanner = Scanner(step)
        with open(path, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while content := file.read(BLOCK):
                scanner.update(content)
        scan = scanner.finish()
        files.remember_read(before, path, facts_of(scan))
    except FileNotFoundError:
        raise UserError(explain_missing(path)) from None
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
    return scan


def scan_all(paths: Iterable[Path]) -> None:
    """Scan plain files, several at the same time, so that their facts are known.

    Nothing is done outside `files.remembering`.

    Raises:
        UserError: a file does not exist or cannot be read.
    """
    plain = [path for path in paths if not is_compressed(path)]
    if not files.is_remembering() or len(plain) < _FEW:
        return
    with ThreadPoolExecutor(min(len(plain), _MOST_THREADS)) as pool:
        for future in [pool.submit(copy_context().run, scan_text, path) for path in plain]:
            future.result()


def known_scan(path: Path) -> Scan | None:
    """Return the scan of a file if it has been made inside `files.remembering`.

    Raises:
        OSError: the file does not exist, or cannot be seen.
    """
    found: Scan | None = files.recall(path, _SCAN)
    return found


def facts_of(scan: Scan) -> dict[str, object]:
    """Return what a scan tells of its file; see `ds_seq.files.known`."""
    return {_SCAN: scan, files.SHA256: scan.sha256}


def text_fingerprint(path: Path) -> str:
    """Return the `files.fingerprint` of a text.

    Raises:
        UserError: the file does not exist.
    """
    if not is_compressed(path):
        return scan_text(path).sha256
    try:
        return files.fingerprint(path)
    except FileNotFoundError:
        raise UserError(explain_missing(path)) from None
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
