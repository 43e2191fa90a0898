"""Read small files that others may have written: within limits, and with one line for each defect.

A checkpoint, a data folder or an export may come from someone else, or be damaged. A file is read
whole only if it is a regular file of a reasonable size, JSON must have the declared structure, and
a name in it stays in its folder. What is wrong is said in one line.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from ds_seq.errors import UserError

T = TypeVar("T")

MOST_BYTES = 1 << 26
"""Most bytes of a JSON file: many times more than any run or data folder needs."""

_LONGEST_NAME = 255

_adapters: dict[type, TypeAdapter[Any]] = {}  # they take time to build

SIZE_LIMIT = 1 << 53
"""Bound of sizes and counts, which stay exact in every JSON reader."""
Count = Annotated[int, Field(ge=0, lt=SIZE_LIMIT)]
Positive = Annotated[int, Field(ge=1, lt=SIZE_LIMIT)]

STRICT = ConfigDict(strict=True, extra="allow")
"""Config of the types that `read_json` reads: no conversions; a `TypedDict` keeps other keys."""


def record(kind: type[T]) -> type[T]:
    """Decorate a dataclass or a `TypedDict` that `read_json` reads."""
    setattr(kind, "__pydantic_config__", STRICT)  # noqa: B010  (no attribute that mypy knows)
    return kind


def _plain_name(name: str) -> str:
    """Check the name of a file in a list of files; see `inside`."""
    if not name or len(name) > _LONGEST_NAME or name in (".", "..") or set(name) & set("/\\\0"):
        raise ValueError("is not the plain name of a file")
    if not name.isprintable():
        raise ValueError("has control characters")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
"""Name of a file in the folder of the list that names it."""


@record
class Versioned(TypedDict):
    """What every version of a manifest has."""

    version: int


def read_limited(path: Path, most_bytes: int = MOST_BYTES, *, pipes: bool = False) -> bytes:
    """Read a small file whole.

    Args:
        path: file to read.
        most_bytes: size limit; by default that of JSON files.
        pipes: whether a pipe or a device may be read, as for a file that the user has named.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, or is larger.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and (stat.S_ISDIR(mode) or not pipes):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise UserError(f"{path}: is {kind}; give a file")
        with open(path, "rb") as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
    if len(content) > most_bytes:
        raise UserError(
            f"{path}: is larger than {most_bytes:,} bytes, so it is not what it is named after; "
            "check the path"
        )
    return content


def unreadable(path: str | Path, error: OSError) -> str:
    """Return the message for a file that cannot be read."""
    advice = ""
    if isinstance(error, PermissionError):
        advice = f"; ask its owner for it, or, if it is yours, chmod u+r {path}"
    return f"{path}: cannot be read: {error.strerror or error}{advice}"


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Read a JSON file of a known structure.

    Args:
        path: file to read.
        kind: type of its content, decorated with `record`.
        remedy: what to do about a damaged file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, is too large, or does not have the structure.
    """
    return parse_json(read_limited(path), kind, path, remedy)


def parse_json(content: bytes, kind: type[T], path: Path, remedy: str) -> T:
    """Convert JSON to a known structure; see `read_json`."""
    try:
        return _adapter(kind).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path}: is damaged ({first_defect(error)}); {remedy}") from None


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def first_defect(error: ValidationError) -> str:
    """Return the place and the problem of the first error, without the input."""
    details: Any = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(_shown(part) for part in details["loc"])
    problem = str(details["msg"])[:200]
    return f"{place}: {problem}" if place else problem


def _shown(part: str | int) -> str:
    """Return a key or an index in a place, short and without control characters."""
    text = str(part)[:40]
    return text if text.isprintable() else repr(text)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file that a list of files names.

    Raises:
        UserError: it is a link that leads out of the folder.
    """
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path}: is a link to {path.resolve()}, outside its folder; put the file itself "
            "there, or link the whole folder"
        )
    return path
