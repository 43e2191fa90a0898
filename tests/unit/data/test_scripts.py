"""The scripts of prepare_data, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_seq.data.shards import ShardReader
from ds_seq.errors import run_command
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from ds_seq.text.tokenizer import Tokenizers
from tests.unit.data.scripts import load_script


def _run(name: str, *arguments: object) -> int:
    module = load_script(name)
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


def test_text_in_other_forms_gives_what_two_files_give(corpus: Path, tmp_path: Path) -> None:
    raw = [corpus / "train.en", corpus / "train.de"]
    sides = [path.read_text(encoding="utf-8").splitlines() for path in raw]
    table, objects = tmp_path / "text.tsv", tmp_path / "text.jsonl"
    rows = list(zip(*sides, strict=True))
    table.write_text("".join(f"x\t{de}\t{en}\n" for en, de in rows), encoding="utf-8")
    objects.write_text("".join(json.dumps({"en": en, "de": de}) + "\n" for en, de in rows))
    forms: dict[str, list[object]] = {
        "files": list(raw),
        "table": ["--text", f"tsv={table}", "--text", "columns=[3,2]"],
        "objects": ["--text", f"jsonl={objects}", "--languages", "en", "de"],
        "list": ["--text", f"source=[{raw[0]}]", "--text", f"target=[{raw[1]}]"],
    }
    made = []
    for name, text in forms.items():
        out = [tmp_path / f"{name}.en", tmp_path / f"{name}.de"]
        assert _run("clean", *text, "--out-source", out[0], "--out-target", out[1]) == 0
        made.append([path.read_bytes() for path in out])
    assert all(each == made[0] for each in made) and made[0][0].count(b"\n") == 300


def test_each_side_may_have_a_vocabulary_of_its_own(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = [corpus / "train.en", corpus / "train.de"]
    models = [tmp_path / "source.model", tmp_path / "target.model"]
    for path, model, size in zip(raw, models, (90, 110), strict=True):
        assert _run("train_vocab", path, "--out", model, "--size", size) == 0
    vocabs = ["--source-vocab", models[0], "--target-vocab", models[1]]
    options = ["--split", "train", "--languages", "en", "de"]
    assert _run("binarize", *raw, *vocabs, *options, "--out", tmp_path / "one") == 0
    twice = ["--text", f"source=[{raw[0]}, {raw[0]}]", "--text", f"target=[{raw[1]}, {raw[1]}]"]
    assert _run("binarize", *twice, *vocabs, *options, "--out", tmp_path / "two") == 0
    both = Tokenizers(*map(SentencePieceTokenizer.load, models))
    one, two = (ShardReader(tmp_path / name, "train", both.fingerprint) for name in ("one", "two"))
    assert len(one) == 300 and len(two) == 600
    for row in (0, 299):
        for side, tokenizer in enumerate(both):
            line = raw[side].read_text(encoding="utf-8").splitlines()[row]
            assert tokenizer.decode(one[row][side].tolist()) == line
            assert two[row + 300][side].tolist() == one[row][side].tolist()
    capsys.readouterr()
    for wrong, message in (
        ([*raw, *vocabs[:2]], "give --vocab, or both --source-vocab and --target-vocab"),
        ([*raw, *vocabs, "--vocab", models[0]], "give --vocab, or both"),
        ([raw[0], *vocabs], "give the text either as two files, SOURCE and TARGET, or with --text"),
        ([*raw, *twice, *vocabs], "give the text either as two files"),
        ([*vocabs, "--text", "tvs=a"], "--text tvs: unknown key (did you mean 'tsv'?)"),
        ([*vocabs, "--text", "folder=a", "--text", "tag=<x>"], "--text tag: belongs to an experim"),
        ([*vocabs, "--text", f"folder={tmp_path}"], f"--text: {tmp_path}: has no train.source"),
    ):
        assert _run("binarize", *wrong, *options, "--out", tmp_path / "none") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and not (tmp_path / "none").exists()


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
