"""fairseq's binary files: `.idx` says where each sentence is in `.bin`.

Two formats exist, which the first bytes of the `.idx` tell apart. All numbers are little-endian::

    mmap:           "MMIDIDX" 0 0, version (8 bytes) = 1, type of a token (1), N (8),
                    N lengths (int32), N starts in bytes (int64)
    cached, lazy:   "TNTIDX" 0 0, version (8) = 1, type of a token (8), its bytes (8), N (8), M (8),
                    N + 1 places in the list of lengths (int64), N + 1 starts in tokens (int64),
                    M lengths (int64); tokens are stored plus one

Files are mapped into memory. Opening one reads its header and, of a length per sentence, the index;
of the tokens only those of the sentences that are asked for.

Shapes: N sentences.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.source import TokenBlock
from ds_seq.errors import UserError
from ds_seq.records import unreadable

TYPES: dict[int, np.dtype] = {
    code: np.dtype(f"<{name}")
    for code, name in enumerate("u1 i1 i2 i4 i8 f8 f8 u2 u4 u8".split(), start=1)
}
"""Types of a token by their code."""

MMAP_MAGIC, CACHED_MAGIC = b"MMIDIDX\0\0", b"TNTIDX\0\0"
_HUFFMAN_MAGIC = b"HUFFIDX\0\0"
_VERSION = 1
_MMAP_HEADER, _CACHED_HEADER = struct.Struct("<9sQBQ"), struct.Struct("<8sQQQQQ")
_MOST_LENGTHS = 1 << 31  # of one file; `struct` and numpy would accept more
_SMALL = 1 << 26  # bytes of a file that its fingerprint covers whole
_SAMPLES, _SAMPLE = 1024, 4096  # blocks of a larger one that it covers, and their size
_REMAKE = "copy it again, or run fairseq-preprocess again"


class IndexedFile:
    """The sentences of `NAME.idx` and `NAME.bin`.

    Args:
        prefix: path without the suffix.

    Attributes:
        path: the `.bin`.
        lengths: (N,) number of tokens of each sentence.

    Raises:
        UserError: a file is missing, truncated or of another format.
    """

    def __init__(self, prefix: Path) -> None:
        self._index_path = prefix.with_name(f"{prefix.name}.idx")
        self.path = prefix.with_name(f"{prefix.name}.bin")
        self._index = index = _mapped(self._index_path)
        self._content = content = _mapped(self.path)
        magic = index[:9].tobytes()
        if magic == MMAP_MAGIC:
            kind, lengths, self._starts = self._read_mmap(index)
            self._unit, self._offset = kind.itemsize, 0
        elif magic[:8] == CACHED_MAGIC:
            kind, lengths, self._starts = self._read_cached(index)
            self._unit, self._offset = 1, 1  # tokens were once numbered from 1
        else:
            is_huffman = magic == _HUFFMAN_MAGIC
            what = "a Huffman code, which is not supported" if is_huffman else "no index of fairseq"
            raise UserError(
                f"{self._index_path}: is {what} (it begins with {magic!r}); run fairseq-preprocess "
                "with --dataset-impl mmap"
            )
        self._type = kind
        self._tokens = content[: len(content) // kind.itemsize * kind.itemsize].view(kind)
        if len(lengths) and int(lengths.min()) < 0:
            raise self._damaged("a length is negative")
        self.lengths = lengths.astype(np.int32, copy=False)
        if len(lengths):
            self._check_span(np.array([0, len(lengths) - 1]))

    def __len__(self) -> int:
        return len(self.lengths)

    def _read_mmap(self, index: NDArray[np.uint8]) -> tuple[np.dtype, NDArray[Any], NDArray[Any]]:
        """Return the type of a token, and lengths (N,) and starts in bytes (N,)."""
        _, version, code, count = self._header(index, _MMAP_HEADER)
        kind = self._kind(version, code)
        start = _MMAP_HEADER.size
        self._check_size(index, count, start + count * 12)
        lengths = index[start : start + 4 * count].view("<i4")
        places = index[start + 4 * count : start + 12 * count].view("<i8")
        if len(places) and int(places[-1]) % kind.itemsize:
            raise self._damaged("a sentence starts inside a token")
        return kind, lengths, places

    def _read_cached(self, index: NDArray[np.uint8]) -> tuple[np.dtype, NDArray[Any], NDArray[Any]]:
        """Return the type of a token, and lengths (N,) and starts in tokens (N,)."""
        _, version, code, _, count, dimensions = self._header(index, _CACHED_HEADER)
        kind = self._kind(version, code)
        start = _CACHED_HEADER.size
        self._check_size(index, count, start + 8 * (2 * count + 2 + dimensions))
        if dimensions != count:
            raise self._damaged("it does not hold lists of tokens")
        second = start + 8 * (count + 1)
        starts = index[second : second + 8 * count].view("<i8")
        lengths = index[second + 8 * (count + 1) :].view("<i8")
        return kind, lengths, starts

    def _header(self, index: NDArray[np.uint8], header: struct.Struct) -> tuple[Any, ...]:
        if len(index) < header.size:
            raise self._damaged(f"it has only {len(index)} bytes")
        return header.unpack(index[: header.size].tobytes())

    def _kind(self, version: int, code: int) -> np.dtype:
        if version != _VERSION:
            raise self._damaged(f"its version is {version}, not {_VERSION}")
        if code not in TYPES:
            raise self._damaged(f"it names the token type {code}, which does not exist")
        return TYPES[code]

    def _check_size(self, index: NDArray[np.uint8], count: int, size: int) -> None:
        if count > _MOST_LENGTHS or len(index) != size:
            raise UserError(
                f"{self._index_path}: has {len(index):,} bytes, but {count:,} sentences take "
                f"{size:,}; {_REMAKE}"
            )

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self._index_path}: is damaged ({what}); {_REMAKE}")

    def _check_span(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the starts of sentences in tokens, which must lie in the `.bin`."""
        starts = np.asarray(self._starts[rows], np.int64) // self._unit
        ends = starts + self.lengths[rows]
        if int(starts.min()) < 0 or int(ends.max()) > len(self._tokens):
            raise UserError(
                f"{self.path}: has {len(self._content):,} bytes, but sentences up to byte "
                f"{int(ends.max()) * self._type.itemsize:,}; {_REMAKE}"
            )
        return starts

    def gather(self, rows: NDArray[np.integer]) -> TokenBlock:
        """Copy sentences with the given numbers, at least one; tokens are int64.

        Raises:
            UserError: the file is truncated or damaged.
        """
        starts = self._check_span(rows)
        lengths = self.lengths[rows].astype(np.int64)
        ends = np.cumsum(lengths)
        places = np.repeat(starts - ends + lengths, lengths) + np.arange(int(ends[-1]))
        tokens = self._tokens[places]
        whole = tokens.astype(np.int64)
        if self._type.kind == "f" and not np.array_equal(whole, tokens):
            raise UserError(f"{self.path}: holds numbers that are no ids; {_REMAKE}")
        return TokenBlock(whole - self._offset, lengths)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the index and the tokens; of more than 64 MiB of these, of 1,024 blocks."""
        digest = hashlib.sha256(self._index.data)
        size = len(self._content)
        digest.update(size.to_bytes(8, "little"))
        starts = [0] if size <= _SMALL else np.linspace(0, size - _SAMPLE, _SAMPLES).astype(int)
        length = size if size <= _SMALL else _SAMPLE
        with open(self.path, "rb", buffering=0) as file:  # a map would fetch much around each block
            for start in starts:
                file.seek(int(start))
                digest.update(file.read(length))
        return digest.hexdigest()


def _mapped(path: Path) -> NDArray[np.uint8]:
    """Map a file into memory."""
    try:
        if path.stat().st_size == 0:  # which cannot be mapped
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {_REMAKE}") from None
    except OSError as error:
        raise UserError(unreadable(path, error)) from None
