"""SHA-256 of files, and the comparison with what their writer recorded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ds_seq.errors import UserError
from ds_seq.files.known import recall, remember_read
from ds_seq.records import inside, read_limited

Damage = Literal["missing", "size", "content"]

CHECKED_AT_LOAD = 2 << 30
"""Shards and caches of at most this many bytes are compared with their checksums when opened.

Weights and optimizer state, which are read as a whole anyway, are always checked.
"""

SUMS_FILE = "SHA256SUMS"
"""Checksums of the other files of a folder, which `sha256sum --check` reads, too."""

SHA256 = "sha256"
"""Name of the fact `fingerprint`; see `ds_seq.files.known`."""

_READ_BYTES = 1 << 20
_SUMS_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")
_SEAL = b',\n "sha256": "'


def fingerprint(path: str | Path) -> str:
    """Return the SHA-256 of a file's content; a file is read once inside `files.remembering`."""
    known: str | None = recall(path, SHA256)
    if known is not None:
        return known
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        while block := file.read(_READ_BYTES):
            digest.update(block)
    remember_read(before, path, {SHA256: digest.hexdigest()})
    return digest.hexdigest()


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object whose last line is the SHA-256 of all that stands before it."""
    body = json.dumps(value, indent=1).removesuffix("\n}").encode()
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def is_sealed(content: bytes) -> bool:
    """Return whether these are exactly the bytes that `sealed_json` has returned."""
    body, _, seal = content.rpartition(_SEAL)
    return seal == hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def check_file(path: Path, size: int, sha256: str | None) -> Damage | None:
    """Compare a file with what its writer recorded; the reader of all checksums of files.

    Args:
        path: the file.
        size: recorded number of bytes.
        sha256: recorded `fingerprint`; None: compare only the size.

    Returns:
        `missing` (also of a folder or a pipe), `size` or `content`: what is wrong; None: nothing.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "missing"
        if status.st_size != size:
            return "size"
        return "content" if sha256 is not None and fingerprint(path) != sha256 else None
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_sums(folder: Path) -> None:
    """Write the checksums of all files of a folder into `SUMS_FILE`.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS_FILE)
    lines = "".join(f"{fingerprint(folder / name)}  {name}\n" for name in names)
    (folder / SUMS_FILE).write_text(lines, encoding="utf-8")


def check_sums(folder: Path) -> int:
    """Compare the files of a folder with its `SUMS_FILE`.

    Returns:
        The number of files.

    Raises:
        UserError: a file is missing or has changed, or the list is damaged.
    """
    path = folder / SUMS_FILE
    content = read_limited(path).decode("utf-8", "replace")
    lines = content.splitlines()
    if not content.endswith("\n"):
        raise UserError(f"{path}:{len(lines)}: is damaged (has no end); copy it again")
    for number, line in enumerate(lines, 1):
        found = _SUMS_LINE.fullmatch(line)
        if found is None:
            raise UserError(f"{path}:{number}: is damaged (no checksum and name of a file)")
        file = inside(folder, found[2])
        if not file.is_file():
            raise UserError(f"{file}: is missing; copy or export the folder again")
        if check_file(file, file.stat().st_size, found[1]) is not None:
            raise UserError(
                f"{file}: its content has changed (SHA-256 differs); copy or export the folder "
                "again"
            )
    return len(lines)
