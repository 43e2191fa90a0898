"""Shards: round trip, determinism over workers, and what a reader refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ds_seq import files
from ds_seq.data import parts
from ds_seq.data.binarize import binarize, is_current
from ds_seq.data.shards import ShardReader, ShardWriter, id_dtype
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.values import SHARD_SIZE


def _write(folder: Path, pairs: list[tuple[list[int], list[int]]], size: int = 100) -> None:
    with ShardWriter(
        folder, "train", vocab_hash="h", vocab_size=70_000, languages=("en", "de"), shard_size=size
    ) as writer:
        for source, target in pairs:
            writer.add(source, target)


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _copy(shards: Path, folder: Path) -> Path:
    shutil.copytree(shards, folder)
    return folder


@pytest.mark.parametrize("shard_size", [1, 7, 100])
def test_writer_and_reader_agree(tmp_path: Path, shard_size: int) -> None:
    random = np.random.default_rng(0)
    pairs = [
        (random.integers(70_000, size=n).tolist(), random.integers(70_000, size=m).tolist())
        for n, m in random.integers(1, 9, size=(20, 2))
    ]
    _write(tmp_path, pairs, shard_size)
    reader = ShardReader(tmp_path, "train", "h")
    assert len(reader) == len(pairs)
    assert [(s.tolist(), t.tolist()) for s, t in (reader[i] for i in range(20))] == pairs
    assert reader.lengths[:, 0].tolist() == [len(source) for source, _ in pairs]
    assert reader.lengths[:, 1].tolist() == [len(target) for _, target in pairs]
    wanted = random.permutation(20)[:13]
    for side, block in enumerate(reader.gather(wanted)):
        assert block.tokens.tolist() == [token for i in wanted for token in pairs[i][side]]
        assert block.lengths.tolist() == [len(pairs[i][side]) for i in wanted]
    reader.check(full=True)


def test_ids_take_no_more_space_than_the_vocabulary_needs() -> None:
    assert id_dtype(65_535) == np.uint16
    assert id_dtype(65_536) == np.uint32


def test_shards_hold_the_text(
    reader: ShardReader, vocab: SentencePieceTokenizer, corpus: Path
) -> None:
    for side, name in enumerate(("train.en", "train.de")):
        lines = (corpus / name).read_text(encoding="utf-8").splitlines()
        assert [vocab.decode(reader[i][side].tolist()) for i in range(len(reader))] == lines
        assert all(reader[i][side][-1] == vocab.symbols.eos for i in range(len(reader)))
    assert len(reader.manifest.shards) == 4


def test_bytes_do_not_depend_on_the_number_of_workers(
    corpus: Path, vocab: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_LINES", 50)
    for workers in (1, 3):
        binarize(
            Tokenizers.shared(vocab),
            corpus / "train.en",
            corpus / "train.de",
            tmp_path / str(workers),
            "train",
            languages=("en", "de"),
            shard_size=70,
            workers=workers,
        )
    assert _snapshot(tmp_path / "1") == _snapshot(tmp_path / "3")


def test_writing_again_leaves_no_old_shard(tmp_path: Path) -> None:
    pairs = [([5, 2], [6, 2])] * 4
    _write(tmp_path, pairs, 1)
    (tmp_path / "train2.0000.src.bin").write_bytes(b"of another split")
    _write(tmp_path, pairs, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train.0000.src.bin",
        "train.0000.tgt.bin",
        "train.lengths",
        "train.manifest.json",
        "train2.0000.src.bin",
    ]


def test_a_failed_write_leaves_nothing_and_the_old_shards(tmp_path: Path) -> None:
    _write(tmp_path, [([5, 2], [6, 2])])
    before = _snapshot(tmp_path)
    obstacle = files.temporary_path(tmp_path / "train.0000.tgt.bin")
    obstacle.mkdir()  # the first of two files can be opened
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        _write(tmp_path, [([7, 2], [8, 2])])
    obstacle.rmdir()
    assert _snapshot(tmp_path) == before


def test_is_current_notices_every_change(
    corpus: Path, shards: Path, vocab: SentencePieceTokenizer, tmp_path: Path
) -> None:
    text = PairPath(corpus / "train.en", corpus / "train.de")
    folder = _copy(shards, tmp_path / "copy")
    assert is_current(folder, "train", vocab, text, 80)
    assert not is_current(folder, "train", vocab, text, 81)
    assert not is_current(folder, "valid", vocab, text, 80)
    assert not is_current(folder, "train", vocab, PairPath(text.target, text.source), 80)
    (folder / "train.lengths").unlink()
    assert not is_current(folder, "train", vocab, text, 80)


def test_missing_folder_and_split_are_distinguished(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data folder; check data.dir"):
        ShardReader(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"valid.manifest.json: no such manifest .*train"):
        ShardReader(shards, "valid")


def test_foreign_vocabulary_names_both_hashes(shards: Path, vocab: SentencePieceTokenizer) -> None:
    with pytest.raises(UserError, match=f"{vocab.fingerprint}.*foreign"):
        ShardReader(shards, "train", "foreign")


@pytest.mark.parametrize("name", ["train.0001.src.bin", "train.lengths"])
def test_truncated_shard_names_file_and_sizes(shards: Path, tmp_path: Path, name: str) -> None:
    path = _copy(shards, tmp_path / "copy") / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=rf"{name}: has {size - 4:,} bytes.*expects {size:,}"):
        ShardReader(path.parent, "train")


def test_missing_file_is_named(shards: Path, tmp_path: Path) -> None:
    folder = _copy(shards, tmp_path / "copy")
    (folder / "train.0001.src.bin").unlink()
    with pytest.raises(UserError, match="train.0001.src.bin: is missing"):
        ShardReader(folder, "train")


def test_changed_bytes_are_found_when_opened(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _copy(shards, tmp_path / "copy") / "train.0000.tgt.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="train.0000.tgt.bin: its content has changed"):
        ShardReader(path.parent, "train")
    monkeypatch.setattr(files, "CHECKED_AT_LOAD", 1000)  # too large to be read twice
    reader = ShardReader(path.parent, "train")
    with pytest.raises(UserError, match="train.0000.tgt.bin: its content has changed"):
        reader.check(full=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 99}', '{"version": 1}'])
def test_damaged_manifest_is_refused(shards: Path, tmp_path: Path, content: str) -> None:
    path = _copy(shards, tmp_path / "copy") / "train.manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"train.manifest.json: (is damaged|has format version)"):
        ShardReader(path.parent, "train")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\nc\n", b"a\nb\n", r"source has 3, .*target has 2;"),
        (b"", b"", "split 'train' is empty"),
        (b"a\n\nc\n", b"a\nb\nc\n", "source: line 2 is empty"),
        (b"a\nb\n", b"a\n  \n", "target: line 2 is empty"),
        (b"a\nb\n", b"a\n\xff\n", "target: line 2: invalid UTF-8"),
    ],
)
def test_bad_text_leaves_older_shards_alone(
    shards: Path,
    vocab: SentencePieceTokenizer,
    tmp_path: Path,
    source: bytes,
    target: bytes,
    message: str,
) -> None:
    (tmp_path / "source").write_bytes(source)
    (tmp_path / "target").write_bytes(target)
    folder = _copy(shards, tmp_path / "copy")
    before = _snapshot(folder)
    with pytest.raises(UserError, match=message):
        binarize(
            Tokenizers.shared(vocab),
            tmp_path / "source",
            tmp_path / "target",
            folder,
            "train",
            languages=("en", "de"),
            shard_size=SHARD_SIZE,
        )
    assert _snapshot(folder) == before


def test_missing_text_is_named(vocab: SentencePieceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source: no such file"):
        binarize(
            Tokenizers.shared(vocab),
            tmp_path / "source",
            tmp_path / "t",
            tmp_path,
            "x",
            languages=("a", "b"),
            shard_size=SHARD_SIZE,
        )


def test_lines_end_at_newlines_only(vocab: SentencePieceTokenizer, tmp_path: Path) -> None:
    """U+2028 and U+0085 are line ends for Python, but not for who aligned the text."""
    (tmp_path / "source").write_text("one\u2028two\nthree\n", encoding="utf-8", newline="")
    (tmp_path / "target").write_text("eins\r\nzwei\x85drei", encoding="utf-8", newline="")
    report = binarize(
        Tokenizers.shared(vocab),
        tmp_path / "source",
        tmp_path / "target",
        tmp_path / "out",
        "x",
        languages=("a", "b"),
        shard_size=SHARD_SIZE,
    )
    assert report.manifest.pairs == 2
