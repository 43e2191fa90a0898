"""Files that are there whole or not at all, for every command that writes.

A file is written under a temporary name in the folder where it will be, and renamed. A kill leaves
at most a temporary file, whose name begins with a dot and ends in `.tmp`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ds_seq.errors import UserError

_READ_BYTES = 1 << 20


def temporary_path(path: Path) -> Path:
    """Return the name under which this process writes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def unwritable(path: str | Path, error: OSError) -> UserError:
    """Return the `UserError` for a file or folder that cannot be written."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name for a new file or folder, which becomes `path` when the block ends.

    After an exception nothing is left of it, and an earlier file `path` is as it was.

    Args:
        path: what is written. Missing parent folders are made.

    Raises:
        UserError: it cannot be written, because the disk is full, for example.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # of a killed process with the same number
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # whatever it is, it has been raised above
            remove(temporary)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file in one step.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file in one step; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; a kill on the way does not leave a part that looks like the whole."""
    hidden = temporary_path(folder)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: where they are.
        pattern: of the names that they would have got, of files that nobody else writes.
    """
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        remove(leftover)


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def lock(file: BinaryIO, path: Path, option: str) -> None:
    """Keep other processes out until the file is closed, which a kill does, too.

    Args:
        file: open for writing.
        path: its name.
        option: the command's option that says where the work is kept.

    Raises:
        UserError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path}: another process is writing to it; end that one first, or give another "
            f"{option}"
        ) from None
    except OSError:
        pass  # a file system without locks


def changed_settings(
    path: Path, settings: Mapping[str, Any], key: str | None = None
) -> dict[str, Any]:
    """Return the settings that differ from those that unfinished work was begun with.

    Args:
        path: JSON file that `write_json` wrote when the work began.
        settings: those of now.
        key: under which the file holds them; None where it holds nothing else.

    Returns:
        By name, what each of them was; None for a setting that there was not.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        old = content if key is None else content[key]
        names = {**old, **settings}
    except (ValueError, TypeError, KeyError, OSError):
        raise UserError(f"{path}: damaged; remove {path.parent}") from None
    return {name: old.get(name) for name in names if old.get(name) != settings.get(name)}
