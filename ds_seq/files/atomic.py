"""Files and folders that exist completely or not at all.

A file is written under a temporary name in its folder, forced to the disk, and then renamed. A
killed process leaves at most a temporary file, whose name starts with a dot, contains process id
and host, and ends in `.tmp`. The next process that writes the same file removes it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from ds_seq.errors import UserError
from ds_seq.files.process import host, is_running
from ds_seq.records import read_json

_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "change its permissions, or choose another place",
}
_WRITER = re.compile(r"\.(\d+)(?:@(.+))?\.tmp$")  # process and host; of old files only the former
_MODEL_AND_DATA = (".yaml", ".json", ".model", ".safetensors", ".bin", ".idx")
"""Suffixes of the files in run folders, exported folders and data folders."""


def unwritable(path: str | Path, error: OSError) -> UserError:
    """Return a `UserError` for a file or folder that cannot be written."""
    advice = _ADVICE.get(error.errno or 0)
    reason = error.strerror or error
    return UserError(f"{path}: cannot be written: {reason}{f'; {advice}' if advice else ''}")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Report an `OSError` of the block as a `UserError`: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def temporary_path(path: Path) -> Path:
    """Return the temporary name under which this process writes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}@{host()}.tmp")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name for a new file or folder, which replaces `path` when the block ends.

    After an exception the temporary file is removed, and an existing `path` is unchanged. After a
    power cut, `path` is the old file or the new one.

    Args:
        path: file or folder to write. Missing parent folders are created.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, escape(path.name), only_dead=True)
            remove(temporary)  # left by a killed process with the same id
            yield temporary
            publish(temporary, path)
    finally:
        with suppress(OSError):  # any such error has been raised above
            remove(temporary)


def publish(temporary: Path, path: Path) -> None:
    """Force a file or folder to the disk and rename it to `path`.

    Raises:
        OSError: it cannot be written.
    """
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent, content=False)


def sync(path: Path, content: bool = True) -> None:
    """Force a file to the disk, or a folder with its `content`, as far as the system can do that.

    Raises:
        OSError: the disk cannot hold it, which some file systems only notice now.
    """
    if content and path.is_dir():
        for item in path.iterdir():
            if not item.is_symlink():
                sync(item)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # not on this system
            raise
    finally:
        os.close(descriptor)


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
    """Remove a file, a link or a folder if it exists; what a link points to is kept."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that an interruption leaves no partial folder that looks complete."""
    hidden = temporary_path(folder)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def remove_leftovers(folder: Path, pattern: str = "*", only_dead: bool = False) -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: folder of the files.
        pattern: glob pattern of their final names.
        only_dead: keep files of processes that may be running. Otherwise, no running process may
            be writing such files; see `Lock`.
    """
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        if (writer := _WRITER.search(leftover.name)) is None:
            continue  # a file of the user's
        if not only_dead or (writer[2] == host() and not is_running(int(writer[1]))):
            remove(leftover)


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
        content: Any = read_json(path, dict[str, Any], "")
        old = content if key is None else content[key]
        names = {**old, **settings}
    except (UserError, TypeError, KeyError, OSError):
        raise UserError(f"{path}: damaged; remove {path.parent}") from None
    return {name: old.get(name) for name in names if old.get(name) != settings.get(name)}
