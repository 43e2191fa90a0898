"""`ds-seq prepare`: what it makes, what it skips, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ds_seq.cli import main
from ds_seq.data.manifest import Manifest
from ds_seq.data.origin import Origin
from ds_seq.data.shards import ShardReader
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment file in a folder with raw text in raw/; the data go to data/."""
    raw = tmp_path / "raw"
    write_toy(raw, 200, 20)
    splits = {
        name: {"source": str(raw / f"{name}.en"), "target": str(raw / f"{name}.de")}
        for name in ("train", "valid", "test")
    }
    content = {
        "name": "toy",
        "data": {
            "source_lang": "en",
            "target_lang": "de",
            "dir": str(tmp_path / "data"),
            "raw": splits,
            "vocab": {"size": 120},
        },
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def _changed(folder: Path, before: dict[str, int]) -> set[str]:
    return {Path(name).name for name, time in _times(folder).items() if before.get(name) != time}


def test_raw_text_becomes_shards(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(tmp_path / "raw/train.en", "a") as en, open(tmp_path / "raw/train.de", "a") as de:
        en.write("same text here\nvery short\n")
        de.write("same text here\na translation that is far too long for that\n")
    assert main(["prepare", str(experiment)]) == 0
    vocab = SentencePieceTokenizer.load(tmp_path / "data/vocab.model")
    assert len(vocab) == 120
    for split, size in (("train", 200), ("valid", 20), ("test", 20)):
        reader = ShardReader(tmp_path / "data", split, vocab.fingerprint)
        assert len(reader) == size
        lines = (tmp_path / "raw" / f"{split}.de").read_text(encoding="utf-8").splitlines()
        assert [vocab.decode(reader[i][1].tolist()) for i in range(size)] == lines[:size]
    output = capsys.readouterr().out
    for expected in ("kept 200 of 202", "1  ratio", "1  identical", "120 subwords", "tokens"):
        assert expected in output


def test_what_is_up_to_date_is_not_made_again(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    command = ["prepare", str(experiment)]
    assert main(command) == 0
    before = _times(folder)
    assert main(command) == 0
    assert _changed(folder, before) == set()
    assert main([*command, "data.shard_size=150"]) == 0
    assert "train.0001.src.bin" in _changed(folder, before)
    assert "vocab.model" not in _changed(folder, before)
    before = _times(folder)
    assert main([*command, "data.shard_size=150", "--force"]) == 0
    assert set(before) == set(_times(folder))
    assert _changed(folder, before) == {Path(name).name for name in before}


def test_new_text_and_options_are_noticed(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert main(["prepare", str(experiment)]) == 0
    write_toy(tmp_path / "raw", 220, 20, seed=2)
    assert main(["prepare", str(experiment)]) == 0
    assert (
        len(
            ShardReader(
                folder, "train", SentencePieceTokenizer.load(folder / "vocab.model").fingerprint
            )
        )
        == 220
    )
    assert main(["prepare", str(experiment), "data.vocab.size=110"]) == 0
    vocab = SentencePieceTokenizer.load(folder / "vocab.model")
    assert len(vocab) == 110
    assert len(ShardReader(folder, "test", vocab.fingerprint)) == 20


def test_a_vocabulary_put_there_is_used_and_kept(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    mine = train_vocab([tmp_path / "raw/train.en", tmp_path / "raw/train.de"], folder / "m", 90)
    mine.save(folder / "vocab.model")
    assert main(["prepare", str(experiment), "--force"]) == 0
    assert SentencePieceTokenizer.load(folder / "vocab.model").fingerprint == mine.fingerprint
    assert ShardReader(folder, "train", mine.fingerprint).manifest.vocab_size == 90


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.raw.train=[]", "data.raw.train: missing"),
        ("data.raw.test.target=none.de", "none.de: no such file"),
        ("data.raw.test.target={raw}/train.de", "has 20, "),
        ("data.vocab.size=90000", "data.vocab.size to at most"),
        ("data.clean.min_words=100", "cleaning dropped all 200"),
        ("data.target_lang=en", "both 'en'"),
    ],
)
def test_errors_are_reported_in_one_line(
    experiment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    arguments = ["prepare", str(experiment), override.format(raw=tmp_path / "raw")]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_the_origin_of_the_shards_is_recorded(experiment: Path, tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.manifest.json"
    assert main(["prepare", str(experiment)]) == 0
    new = Manifest.read(path)
    assert new.origin.vocab is not None and new.origin.vocab["size"] == 120
    assert new.origin.clean is not None and new.origin.clean["max_words"] == 250
    assert new.origin.raw is not None and len(new.origin.raw) == 2
    replace(new, origin=Origin()).write(path)  # as an earlier version
    before = _times(tmp_path / "data")
    assert main(["prepare", str(experiment)]) == 0
    assert Manifest.read(path) == new
    assert _changed(tmp_path / "data", before) == {path.name}, "no step was repeated"


def test_renamed_languages_are_recorded(experiment: Path, tmp_path: Path) -> None:
    assert main(["prepare", str(experiment)]) == 0
    assert main(["prepare", str(experiment), "data.source_lang=en_GB"]) == 0
    manifest = Manifest.read(tmp_path / "data" / "valid.manifest.json")
    assert manifest.languages == ("en_GB", "de")


def test_pseudo_labels_are_not_replaced(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(experiment)]) == 0
    path = tmp_path / "data" / "train.manifest.json"
    manifest = Manifest.read(path)
    replace(manifest, origin=replace(manifest.origin, labels="runs/big")).write(path)
    assert main(["prepare", str(experiment)]) == 2
    assert "translations by runs/big" in capsys.readouterr().err
    assert main(["prepare", str(experiment), "--force"]) == 0
    assert Manifest.read(path) == manifest
