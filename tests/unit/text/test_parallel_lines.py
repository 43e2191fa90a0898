"""Text files as bytes: plain, compressed, damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath, count_pairs, open_bytes, read_blocks

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
}


@pytest.fixture(scope="module")
def text() -> bytes:
    """More than is read at once, of numbers that compress badly."""
    draw = random.Random(0)
    return b"".join(b"line %d\n" % draw.randrange(10**12) for _ in range(80_000))


@pytest.fixture(scope="module")
def packed_text(text: bytes) -> dict[str, bytes]:
    return {suffix: compress(text) for suffix, compress in COMPRESSORS.items()}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_reads_as_the_plain_one(
    tmp_path: Path, text: bytes, packed_text: dict[str, bytes], suffix: str
) -> None:
    plain, packed = tmp_path / "text", tmp_path / f"text{suffix}"
    plain.write_bytes(text)
    packed.write_bytes(packed_text[suffix])
    for path in (plain, packed):
        with open_bytes(path) as file:
            assert list(file) == text.splitlines(keepends=True)
        assert file.closed
        with open_bytes(path) as file:
            assert file.read(7) + file.read() == text
    pair = PairPath(plain, packed)
    assert count_pairs([pair]) == 80_000
    blocks = list(read_blocks([pair], 50_000))
    assert [block.source == block.target for block in blocks] == [True, True]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _overwritten(content: bytes) -> bytes:
    return content[:3000] + bytes(40) + content[3040:]


@pytest.mark.parametrize("damage", [_cut, _overwritten, lambda content: b"just text\n"])
@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_damaged_compressed_file_is_named(
    tmp_path: Path,
    packed_text: dict[str, bytes],
    suffix: str,
    damage: Callable[[bytes], bytes],
) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(damage(packed_text[suffix]))
    with pytest.raises(UserError) as refused, open_bytes(path) as file:
        for _ in file:
            pass
    assert str(refused.value).startswith(f"{path}: cannot be decompressed (")
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="cannot be decompressed"):
        count_pairs([PairPath(path, path)])
