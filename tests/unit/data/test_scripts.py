"""The scripts of prepare_data, one after the other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ds_seq.data.shards import ShardReader
from ds_seq.errors import run_command
from ds_seq.text.sentencepiece import SentencePieceTokenizer

SCRIPTS = Path(__file__).resolve().parents[3] / "prepare_data"


def _run(name: str, *arguments: object) -> int:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_command(module.main, [str(argument) for argument in arguments])


def test_scripts_lead_from_text_to_shards(corpus: Path, tmp_path: Path) -> None:
    clean = [tmp_path / "clean.en", tmp_path / "clean.de"]
    raw = [corpus / "train.en", corpus / "train.de"]
    assert _run("clean", *raw, "--out-source", clean[0], "--out-target", clean[1]) == 0
    assert clean[1].read_bytes() == raw[1].read_bytes()
    model = tmp_path / "vocab.model"
    assert _run("train_vocab", *clean, "--out", model, "--size", 130) == 0
    options = ["--vocab", model, "--out", tmp_path, "--split", "train", "--languages", "en", "de"]
    assert _run("binarize", *clean, *options) == 0
    reader = ShardReader(tmp_path, "train", SentencePieceTokenizer.load(model).fingerprint)
    assert reader.manifest.languages == ("en", "de")
    assert len(reader) == 300


def test_a_vocabulary_is_checked_as_in_an_experiment(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, model = corpus / "train.de", tmp_path / "vocab.model"
    options = [text, "--out", model, "--size", 80]
    assert _run("train_vocab", *options, "--symbols", "<2de>", "</s>") == 2
    assert "error: </s> is always in the vocabulary" in capsys.readouterr().err
    assert _run("train_vocab", *options, "--normalization", "nkfc") == 2
    assert "did you mean 'nfkc'" in capsys.readouterr().err and not model.exists()
    assert _run("train_vocab", *options, "--normalization", "nfkc", "--symbols", "<2de>") == 0
    assert SentencePieceTokenizer.load(model).normalization == "nfkc"


def test_fetch_sample_takes_pairs_of_a_table(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        (corpus / f"train.{side}").read_text(encoding="utf-8").splitlines() for side in ("en", "de")
    ]
    table = tmp_path / "pairs.tsv"
    pairs = zip(*lines, strict=True)
    table.write_text("".join(f"{en}\t{de}\n" for en, de in pairs), encoding="utf-8")
    options = ["--tsv", table, "--held-out", 50]
    assert _run("fetch_sample", "--out", tmp_path / "a", *options) == 0
    assert _run("fetch_sample", "--out", tmp_path / "b", *options) == 0
    for split in ("train", "valid", "test"):
        for side in ("en", "de"):
            content = (tmp_path / "a" / f"{split}.{side}").read_text(encoding="utf-8")
            assert content == (tmp_path / "b" / f"{split}.{side}").read_text(encoding="utf-8")
            assert split == "train" or content.count("\n") == 50
    capsys.readouterr()
    assert _run("fetch_sample", "--out", tmp_path / "c", "--tsv", tmp_path / "none") == 2
    assert "none: no such file" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
