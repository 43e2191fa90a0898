"""Read compressed files: `.gz`, `.bz2`, `.xz` and `.zst`, the latter by a package or a program."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from ds_seq.errors import UserError
from ds_seq.names import COMPRESSED

_READ = 1 << 14  # of compressed bytes, which may stand for a thousand times as many
_LARGEST_WINDOW = 1 << 31  # of `zstd --long=31`
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


class _Bytes(Protocol):
    """What is read of an open file."""

    def readinto(self, buffer: Any, /) -> int: ...

    def close(self) -> None: ...


class Decompressed(io.RawIOBase):
    """Content of a compressed file.

    Args:
        path: the file; its suffix, one of `COMPRESSED`, says how it is compressed.

    Raises:
        OSError: it cannot be opened.
        UserError: nothing here can decompress it. Reading raises it for a damaged file, because
            damage only shows there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _OPENERS[path.suffix](path)

    def readable(self) -> bool:
        """Return True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; see `io.RawIOBase`."""
        try:
            return self._file.readinto(buffer)
        except _DAMAGED as error:
            raise UserError(
                f"{self._path}: cannot be decompressed ({error}); it is damaged or incomplete"
            ) from None

    def close(self) -> None:
        """Close the file; the rest of it is not read."""
        self._file.close()
        super().close()


def _standard(opener: Callable[..., object]) -> Callable[[Path], _Bytes]:
    return lambda path: cast(_Bytes, opener(path, "rb"))


def _open_zstd(path: Path) -> _Bytes:
    if find_spec("zstandard") is not None:
        return _ZstdPackage(path)
    if shutil.which("zstd") is not None:
        return _ZstdProgram(path)
    raise UserError(
        f"{path}: cannot be decompressed without the Python package zstandard or the program zstd; "
        "install one of them, for example: pip install zstandard"
    )


class _ZstdPackage:
    """A file read by the package zstandard.

    Its own stream takes a file that ends in the middle of a frame for a complete one.
    """

    def __init__(self, path: Path) -> None:
        import zstandard  # optional, so imported only here

        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        while not self._output:
            if not self._input:
                self._input = self._file.read(_READ)
                if not self._input:
                    if self._frame is not None:
                        raise EOFError("it ends in the middle of a frame")
                    return 0
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise EOFError(str(error)) from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(view), len(self._output))
        view[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def close(self) -> None:
        self._file.close()


class _ZstdProgram:
    """A file read through a pipe from the program zstd."""

    def __init__(self, path: Path) -> None:
        path.open("rb").close()  # a missing file is no matter of zstd
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            ["zstd", "-dcq", "--long=31", "--", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def readinto(self, buffer: Any, /) -> int:
        assert self._process.stdout is not None
        size: int = self._process.stdout.readinto1(buffer)  # type: ignore[attr-defined]
        if size == 0 and self._process.wait() != 0:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines() or ["zstd"]
            raise EOFError(lines[0].rpartition(" : ")[2])
        return size

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()
        self._log.close()


_OPENERS: dict[str, Callable[[Path], _Bytes]] = {
    ".gz": _standard(gzip.open),
    ".bz2": _standard(bz2.open),
    ".xz": _standard(lzma.open),
    ".zst": _open_zstd,
}
assert set(_OPENERS) == set(COMPRESSED)
