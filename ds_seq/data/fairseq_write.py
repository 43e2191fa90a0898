"""Write fairseq's binary files, byte for byte as fairseq-preprocess does by default."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_seq import files
from ds_seq.data.fairseq_files import MMAP_MAGIC, TYPES
from ds_seq.data.source import TokenBlock

_FEW = 65_500
"""Ids of fewer symbols than this take two bytes in fairseq, others four."""


def token_code(vocab_size: int | None) -> int:
    """Return fairseq's code of the type of a token; without a vocabulary, that of 4 bytes."""
    name = "<u2" if vocab_size is not None and vocab_size < _FEW else "<u4"
    return next(code for code, kind in TYPES.items() if kind == np.dtype(name))


class IndexedWriter:
    """Collects the sentences of one `.bin`; see `indexed_writer`."""

    def __init__(self, path: Path, code: int) -> None:
        self._code, self._type = code, TYPES[code]
        self._lengths: list[NDArray[np.int32]] = []
        self._file = open(path, "wb")  # noqa: SIM115

    def add(self, block: TokenBlock) -> None:
        """Append sentences."""
        self._file.write(block.tokens.astype(self._type).tobytes())
        self._lengths.append(block.lengths.astype("<i4"))

    def close(self) -> None:
        """Close the file; needed in any case."""
        self._file.close()

    def index(self) -> bytes:
        """Return the content of the `.idx`."""
        lengths = np.concatenate([np.zeros(0, "<i4"), *self._lengths])
        sizes = lengths.astype(np.int64) * self._type.itemsize
        starts = (np.cumsum(sizes) - sizes).astype("<i8")
        header = MMAP_MAGIC + struct.pack("<QBQ", 1, self._code, len(lengths))
        return header + lengths.tobytes() + starts.tobytes()


@contextmanager
def indexed_writer(prefix: Path, vocab_size: int | None) -> Iterator[IndexedWriter]:
    """Write `NAME.bin`, then `NAME.idx`; both appear only if the block succeeds.

    Args:
        prefix: path without the suffix.
        vocab_size: number of symbols of the dictionary; None for numbers that are no symbols.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    content = prefix.with_name(f"{prefix.name}.bin")
    index = prefix.with_name(f"{prefix.name}.idx")
    with files.replacing(content) as temporary:
        writer = IndexedWriter(temporary, token_code(vocab_size))
        try:
            yield writer
        finally:
            writer.close()
    files.write_bytes(index, writer.index())
