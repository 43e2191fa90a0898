"""Downloads that resume where they were interrupted, compared with checksums."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from ds_seq import files
from ds_seq.data.progress import Progress
from ds_seq.errors import UserError
from ds_seq.records import unreadable
from ds_seq.text.lines import read_lines

SUMS_FILE = "SHA256SUMS"
"""Checksums of the files of a folder, in the format of `sha256sum`."""

_BLOCK = 1 << 18  # what a kill may lose of a slow download
_SECONDS = 60.0  # without any answer
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # between attempts
_TRANSIENT = (OSError, http.client.HTTPException)  # among them URLError and time-outs
_RANGE_NOT_SATISFIABLE = 416
_SERVER_ERRORS = 500


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        url: its address.
        size: published number of bytes, None if it is not known.
        checksum: published digest, such as `sha256:...` or `md5:...`. If it is not known, the
            SHA-256 of the first download is recorded, and later ones are compared with it.
    """

    url: str
    size: int | None = None
    checksum: str | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return urlsplit(self.url).path.rpartition("/")[2]


def fetch(
    archive: Archive, folder: Path, mirror: str | None = None, pauses: tuple[float, ...] = _PAUSES
) -> Path:
    """Return the path of a file, after downloading what is missing of it and checking it.

    Args:
        archive: the file.
        folder: folder for it and for the checksums. An interrupted download stays there as
            `NAME.part`, and the next one continues from its end.
        mirror: address of a server, or a local folder, that has the file at the path of its
            address: `wmt14/test-full.tgz` of `https://statmt.org/wmt14/test-full.tgz`. A file in a
            folder is used where it is.
        pauses: seconds to wait after each failed attempt but the last.

    Raises:
        UserError: the file cannot be had, is incomplete, or does not have its checksum.
    """
    place = urlsplit(archive.url).path.lstrip("/")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if mirror and "://" not in mirror:
        path = Path(mirror) / place
        if not path.is_file():
            raise UserError(f"{path}: no such file; the mirror (WMT_MIRROR) should have it there")
        _check(archive, path, folder)
        return path
    path = folder / archive.name
    if not path.exists():
        url = f"{mirror.rstrip('/')}/{place}" if mirror else archive.url
        _download(url, path, pauses)
    try:
        _check(archive, path, folder)
    except UserError:
        wrong = path.with_name(f"{path.name}.wrong")
        with files.writing(wrong):
            os.replace(path, wrong)  # the next try starts from the beginning
        raise
    return path


def _check(archive: Archive, path: Path, folder: Path) -> None:
    """Compare a file with its published size and digest, and with the recorded SHA-256."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise UserError(
            f"{path}: has {size:,} bytes, but the published size is {archive.size:,}; it is "
            "incomplete or another file: run this again, or choose another mirror (WMT_MIRROR)"
        )
    kind, _, published = (archive.checksum or "").partition(":")
    found = _digests(path, {"sha256", kind} if kind else {"sha256"})
    if kind and found[kind] != published:
        raise UserError(
            f"{path}: its {kind.upper()} is {found[kind]}, but {published} is published; it is "
            "damaged or another file: run this again, or choose another mirror (WMT_MIRROR)"
        )
    _record(folder / SUMS_FILE, path.name, found["sha256"], is_published=bool(kind))


def _digests(path: Path, kinds: set[str]) -> dict[str, str]:
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                for digest in digests.values():
                    digest.update(block)
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


def recorded_sums(sums: Path) -> dict[str, str]:
    """Return the checksums in a file, by name; none if there is no such file.

    Raises:
        UserError: it cannot be read or has another format than that of `sha256sum`.
    """
    recorded: dict[str, str] = {}
    for number, line in enumerate(read_lines(sums) if sums.exists() else [], 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](\S.*)", line)
        if match is None:
            raise UserError(f"{sums}: line {number}: should be a SHA-256, two spaces and a name")
        recorded[match[2]] = match[1]
    return recorded


def _record(sums: Path, name: str, sha256: str, is_published: bool) -> None:
    """Compare a SHA-256 with the recorded one, or record it."""
    recorded = recorded_sums(sums)
    known = recorded.get(name)
    if known is None:
        new = {**recorded, name: sha256}
        files.write_text(sums, "".join(f"{digest}  {key}\n" for key, digest in new.items()))
        if not is_published:
            print(f"{name}: no checksum is published; its SHA-256 {sha256} is now in {sums}")
    elif known != sha256:
        raise UserError(
            f"{name}: its SHA-256 is {sha256}, but that of an earlier download, in {sums}, is "
            f"{known}; if the new file is the right one, remove that line"
        )


def _download(url: str, path: Path, pauses: tuple[float, ...]) -> None:
    """Download a file under a temporary name; continue what an earlier attempt has left."""
    part = path.with_name(f"{path.name}.part")
    for pause in (*pauses, None):
        try:
            _go_on(url, part)
            break
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            is_final = error.code < _SERVER_ERRORS and error.code != http.client.REQUEST_TIMEOUT
        except UserError:
            raise
        except _TRANSIENT as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = str(cause) or type(error).__name__
            is_final = False
        if is_final or pause is None:
            kept = part.stat().st_size if part.exists() else 0
            rest = f"; {kept:,} bytes are kept, and running this again continues from there"
            raise UserError(
                f"{url}: cannot be downloaded: {reason}{rest if kept and not is_final else ''}"
                "; WMT_MIRROR names another server or a local folder"
            )
        time.sleep(pause)
    with files.writing(path):
        files.publish(part, path)
        _mark_of(part).unlink(missing_ok=True)


def _mark_of(part: Path) -> Path:
    """Return the file that says of which version of a file `part` is a part."""
    return part.with_name(f"{part.name}.version")


def _go_on(url: str, part: Path) -> None:
    """Append the rest of a file to `part`.

    Raises:
        OSError, HTTPException: the connection failed or ended early.
        UserError: `part` cannot be written.
    """
    done = part.stat().st_size if part.exists() else 0
    mark = _mark_of(part)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if mark.exists():  # otherwise the rest of another version could be appended
            request.add_header("If-Range", mark.read_text(encoding="utf-8").strip())
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE or not done:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{done}"):
            return  # it was complete
        with files.writing(part):
            part.unlink()
        raise ConnectionError("the file on the server has changed") from None
    with response:
        is_rest = response.status == http.client.PARTIAL_CONTENT
        start = done if is_rest else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        with files.writing(part):
            if version and not version.startswith("W/"):
                mark.write_text(version, encoding="utf-8")
            with open(part, "ab" if is_rest else "wb") as file:
                _copy(response, file, part.name.removesuffix(".part"), start, total)


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, name: str, start: int, total: int | None
) -> None:
    with Progress(f"downloading {name}", total, "bytes") as progress:
        progress(start)
        while True:
            try:
                block = response.read(_BLOCK)
            except _TRANSIENT as error:  # not one of writing
                raise http.client.HTTPException(f"the connection broke ({error})") from None
            if not block:
                break
            file.write(block)
            start += len(block)
            progress(len(block))
    if total is not None and start < total:
        raise http.client.HTTPException(f"the connection ended after {start:,} of {total:,} bytes")
