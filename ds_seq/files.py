"""Atomic file operations: a file exists completely or not at all.

A file is written under a temporary name in its folder and then renamed. A killed process leaves at
most a temporary file, whose name starts with a dot and ends in `.tmp`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ds_seq.errors import UserError

_READ_BYTES = 1 << 20
_MODEL_AND_DATA = (".yaml", ".json", ".model", ".safetensors", ".bin", ".idx")
"""Suffixes of the files in run folders, exported folders and data folders."""


def temporary_path(path: Path) -> Path:
    """Return the temporary name under which this process writes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def unwritable(path: str | Path, error: OSError) -> UserError:
    """Return a `UserError` for a file or folder that cannot be written."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name for a new file or folder, which replaces `path` when the block ends.

    After an exception the temporary file is removed, and an existing `path` is unchanged.

    Args:
        path: file or folder to write. Missing parent folders are created.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # left by a killed process with the same id
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # any such error has been raised above
            remove(temporary)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def check_not_input(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write a file that is also read, which would destroy it; links are followed.

    Args:
        output: file or folder to write.
        inputs: files and folders to read; None and names that do not exist are ignored. In a
            folder, the files of models and data are protected.

    Raises:
        UserError: the output is one of the inputs, or such a file in one of them.
    """
    output = Path(output)
    for name in inputs:
        if name is None or not os.path.exists(name):
            continue
        is_same = os.path.exists(output) and os.path.samefile(output, name)
        is_part = (
            output.is_file()
            and output.suffix in _MODEL_AND_DATA
            and Path(name).resolve() in output.resolve().parents
        )
        if is_same or is_part:
            kind = "is also" if is_same else "belongs to"
            raise UserError(
                f"{output}: {kind} the input {name}, which it would overwrite; give the output "
                "another name"
            )


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that an interruption leaves no partial folder that looks complete."""
    hidden = temporary_path(folder)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: folder of the files.
        pattern: glob pattern of their final names; no running process may be writing such files.
    """
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        remove(leftover)


def fingerprint(path: str | Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def lock(file: BinaryIO, path: Path, option: str) -> None:
    """Lock a file against other processes until it is closed, also by the end of the process.

    Args:
        file: file that is open for writing.
        path: path of the file.
        option: option of the command that sets the folder of the work.

    Raises:
        UserError: another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path}: another process is writing to it; stop that process first, or give another "
            f"{option}"
        ) from None
    except OSError:
        pass  # the file system does not support locks


def changed_settings(
    path: Path, settings: Mapping[str, Any], key: str | None = None
) -> dict[str, Any]:
    """Return the settings that differ from those that unfinished work was started with.

    Args:
        path: JSON file that `write_json` wrote when the work was started.
        settings: current settings.
        key: key of the settings in the file; None if the whole file is the settings.

    Returns:
        The earlier value of each setting that differs, by name; None if it did not exist.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        old = content if key is None else content[key]
        names = {**old, **settings}
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        raise UserError(f"{path}: damaged; remove {path.parent}") from None
    return {name: old.get(name) for name in names if old.get(name) != settings.get(name)}
