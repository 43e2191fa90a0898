"""The second format of shards: opened without reading them, checked bit by bit, corpora."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds_seq.data import shards as shards_module
from ds_seq.data.manifest import Manifest
from ds_seq.data.shards import ShardReader, ShardWriter, manifest_path
from ds_seq.errors import UserError
from tests.compat.made import ARTEFACTS

NUM_PAIRS = 300


@pytest.fixture(scope="module")
def pairs() -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(0)
    return [
        (random.integers(90, size=n).tolist(), random.integers(90, size=m).tolist())
        for n, m in random.integers(1, 40, size=(NUM_PAIRS, 2))
    ]


def write(folder: Path, pairs: list[tuple[list[int], list[int]]], shard_size: int) -> Manifest:
    with ShardWriter(
        folder, "train", vocab_hash="h", vocab_size=90, languages=("a", "b"), shard_size=shard_size
    ) as writer:
        for pair in pairs:
            writer.add(*pair)
    return Manifest.read(manifest_path(folder, "train"))


@pytest.mark.parametrize("shard_size", [30, 31, 32, 33, 65, 1000])
def test_any_rows_in_any_order(
    tmp_path: Path,
    pairs: list[tuple[list[int], list[int]]],
    shard_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards_module, "_MOST_ROWS", 50)
    write(tmp_path, pairs, shard_size)
    reader = ShardReader(tmp_path, "train")
    random = np.random.default_rng(1)
    for rows in (random.integers(NUM_PAIRS, size=200), np.arange(NUM_PAIRS), np.asarray([7])):
        for side, block in enumerate(reader.gather(rows)):
            assert block.tokens.tolist() == [token for row in rows for token in pairs[row][side]]
            assert block.lengths.tolist() == [len(pairs[row][side]) for row in rows]
    assert reader.lengths.tolist() == [[len(side) for side in pair] for pair in pairs]


def test_many_shards_are_opened_without_reading_any(
    tmp_path: Path, pairs: list[tuple[list[int], list[int]]]
) -> None:
    write(tmp_path, pairs[:65], 1)
    shards = sorted(tmp_path.glob("*.bin"))
    assert len(shards) == 130
    kept = {path: path.read_bytes() for path in shards[:2]}
    for path in shards:
        path.write_bytes(b"")  # a reader that looked would see that they are damaged
    reader = ShardReader(tmp_path, "train")
    assert len(reader) == len(reader.lengths) == 65
    for path, content in kept.items():
        path.write_bytes(content)
    assert reader[0][0].tolist() == pairs[0][0]
    with pytest.raises(UserError, match=r"train\.0001\.src\.bin: has 0 bytes, but its shard has"):
        reader.gather(np.asarray([0, 1]))
    shards[7].unlink()
    with pytest.raises(UserError, match=r"train\.0003\.tgt\.bin: is missing"):
        ShardReader(tmp_path, "train")


def test_no_shard_stays_open(tmp_path: Path, pairs: list[tuple[list[int], list[int]]]) -> None:
    """More shards than files that a process may have open."""
    write(tmp_path, pairs[:30], 1)
    reader = ShardReader(tmp_path, "train")
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader.gather(np.arange(30))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_lengths_of_other_shards_are_refused(
    tmp_path: Path, pairs: list[tuple[list[int], list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ds_seq.data.shards._FEW_SHARDS", 2)
    write(tmp_path, pairs[:9], 3)
    path = tmp_path / "train.lengths"
    lengths = np.fromfile(path, "<i4")
    lengths[12] += 1
    lengths.tofile(path)
    with pytest.raises(UserError, match=r"train\.lengths: its content has changed"):
        ShardReader(tmp_path, "train")
    monkeypatch.setattr("ds_seq.files.CHECKED_AT_LOAD", 0)
    reader = ShardReader(tmp_path, "train")
    reader.gather(np.arange(6))
    with pytest.raises(UserError, match=r"train\.lengths: is damaged .*not those of shard 2"):
        reader.gather(np.arange(7))


def flipped_bits(content: bytes) -> list[bytes]:
    flipped = []
    for place in range(0, len(content), 3):
        copy = bytearray(content)
        copy[place] ^= 1 << place % 8
        flipped.append(bytes(copy))
    return flipped


def test_no_byte_of_a_manifest_can_change(
    tmp_path: Path, pairs: list[tuple[list[int], list[int]]]
) -> None:
    write(tmp_path, pairs[:2], 3)
    path = manifest_path(tmp_path, "train")
    content = path.read_bytes()
    for damaged in [*flipped_bits(content), content[:-1], content[: len(content) // 2], b""]:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"manifest\.json: (is damaged|has format version)"):
            Manifest.read(path)


def test_corpora_start_shards_and_are_recorded(
    tmp_path: Path, pairs: list[tuple[list[int], list[int]]]
) -> None:
    options = {"vocab_hash": "h", "vocab_size": 90, "languages": ("a", "b"), "shard_size": 8}
    with ShardWriter(tmp_path, "train", **options) as writer:  # type: ignore[arg-type]
        writer.begin_corpus("web", ("a", "b"), ["1", "2"])
        for pair in pairs[:20]:
            writer.add(*pair)
        writer.begin_corpus("news", ("a", "c"))
        for pair in pairs[20:23]:
            writer.add(*pair)
    reader = ShardReader(tmp_path, "train")
    assert [shard.pairs for shard in reader.manifest.shards] == [8, 8, 4, 3]
    web, news = reader.corpora
    assert (web.name, web.rows, web.languages, web.inputs) == (
        "web",
        range(20),
        ("a", "b"),
        ("1", "2"),
    )
    assert (news.name, news.rows, news.languages) == ("news", range(20, 23), ("a", "c"))
    assert [side.tolist() for side in reader[21]] == list(pairs[21])
    path = manifest_path(tmp_path, "train")
    for records in ((news,), (web,), (web, replace(news, num_rows=4))):
        replace(reader.manifest, corpora=records).write(path)
        with pytest.raises(UserError, match=r"is damaged \(corpora: "):
            ShardReader(tmp_path, "train")


def test_an_empty_corpus_is_named(tmp_path: Path) -> None:
    options = {"vocab_hash": "h", "vocab_size": 90, "languages": ("a", "b"), "shard_size": 8}
    with (
        pytest.raises(UserError, match="corpus 'web' is empty"),
        ShardWriter(tmp_path, "train", **options) as writer,  # type: ignore[arg-type]
    ):
        writer.begin_corpus("web", ("a", "b"))
        writer.begin_corpus("news", ("a", "b"))
    assert not list(tmp_path.iterdir())


def test_the_first_format_is_read(tmp_path: Path) -> None:
    shutil.copytree(ARTEFACTS / "data", tmp_path / "data")
    reader = ShardReader(tmp_path / "data", "train")
    assert reader.manifest.version == 1 and len(reader) == len(reader.lengths)
    (corpus,) = reader.corpora
    assert (corpus.name, corpus.rows) == ("train", range(len(reader)))
    rows = np.asarray([3, 0, len(reader) - 1])
    blocks = reader.gather(rows)
    assert all(
        block.lengths.tolist() == reader.lengths[rows, n].tolist() for n, block in enumerate(blocks)
    )
    eos = {int(tokens[-1]) for row in range(len(reader)) for tokens in reader[row]}
    assert eos == {2}
    path = manifest_path(tmp_path / "data", "train")
    before = json.loads(path.read_text())
    Manifest.read(path).write(path)
    assert json.loads(path.read_text())["version"] == 1
    assert json.loads(path.read_text())["files"] == before["files"]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
    "flipped": lambda content: bytes([content[0] ^ 16]) + content[1:],
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_in_every_file(
    tmp_path: Path,
    pairs: list[tuple[list[int], list[int]]],
    damage: Callable[[bytes], bytes],
) -> None:
    manifest = write(tmp_path, pairs[:9], 5)
    assert len(manifest.files) == 5 == len(list(tmp_path.iterdir())) - 1
    for name in manifest.files:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(damage(content))
        with pytest.raises(UserError, match=rf"{name}: (its content has changed|has .* bytes)"):
            manifest.check_files(tmp_path, full=True)
        (tmp_path / name).write_bytes(content)
