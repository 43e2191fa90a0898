"""Shards are compared with what their reader expects of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ds_seq.data.manifest import Manifest, ShardCounts
from ds_seq.data.origin import Expected, Origin, TextRecord, check_origin, same_language
from ds_seq.errors import UserError
from ds_seq.text.lines import PairPath

CLEAN = {"nfkc": False, "max_words": 250}
VOCAB = {"size": 90, "model_type": "bpe", "user_symbols": ["<2de>"]}


@pytest.fixture
def raw(tmp_path: Path) -> PairPath:
    pair = PairPath(tmp_path / "x.en", tmp_path / "x.de")
    for path in pair:
        path.write_text("a\nb\n")
    return pair


@pytest.fixture
def origin(raw: PairPath) -> Origin:
    return Origin(tuple(map(TextRecord.of, raw)), CLEAN, VOCAB)


def manifest(origin: Origin = Origin(), vocab_size: int = 90) -> Manifest:  # noqa: B008
    return Manifest(
        "hash", vocab_size, "uint16", ("en", "de"), (ShardCounts(1, 1, 1),), origin=origin
    )


def expected(pair: PairPath, **changes: Any) -> Expected:
    return replace(Expected(("en", "de"), None, (pair,), CLEAN, VOCAB), **changes)


def check(shards: Manifest, wanted: Expected, folder: Path) -> None:
    check_origin(shards, folder, "train", wanted)


def test_shards_of_the_experiment_pass_without_a_word(
    raw: PairPath, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(manifest(origin), expected(raw), tmp_path)
    assert capsys.readouterr().err == ""


def test_a_filter_that_one_of_them_lacks_is_a_difference(
    raw: PairPath, origin: Origin, tmp_path: Path
) -> None:
    wanted = expected(raw, clean_defaults={"max_chars": None, "punctuation": None})
    check(manifest(origin), wanted, tmp_path)
    with pytest.raises(
        UserError, match=r"clean.max_chars: 9, but .* set data.clean.max_chars=null"
    ):
        check(manifest(origin), replace(wanted, clean={**CLEAN, "max_chars": 9}), tmp_path)
    made = replace(origin, clean={**CLEAN, "punctuation": "moses"})
    with pytest.raises(UserError, match=r"clean.punctuation: null, but .* set .*=moses"):
        check(manifest(made), wanted, tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"languages": ("de", "en")}, ("data.source_lang=en", "data.target_lang=de")),
        ({"languages": ("en", "fr")}, ("data.target_lang=de",)),
        ({"clean": {**CLEAN, "nfkc": True}}, ("data.clean.nfkc=false",)),
        ({"clean": {**CLEAN, "max_words": 80}}, ("data.clean.max_words=250",)),
        ({"vocab": {**VOCAB, "size": 100}}, ("data.vocab.size=90",)),
        ({"vocab": {**VOCAB, "model_type": "unigram"}}, ("data.vocab.model_type=bpe",)),
        ({"vocab": {**VOCAB, "user_symbols": []}}, ('data.vocab.user_symbols=["<2de>"]',)),
    ],
)
def test_every_difference_is_named_with_its_fix(
    raw: PairPath, origin: Origin, tmp_path: Path, changes: dict[str, Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as error:
        check(manifest(origin), expected(raw, **changes), tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == len(named)
    for line, fix in zip(lines, named, strict=True):
        assert "run `ds-seq prepare` again, or set " in line and line.endswith(fix)


def test_changed_text_is_named_and_a_new_date_is_no_change(
    raw: PairPath, origin: Origin, tmp_path: Path
) -> None:
    os.utime(raw.target, (1, 1))
    check(manifest(origin), expected(raw), tmp_path)
    raw.target.write_text("a\nc\n")  # of the same size
    with pytest.raises(UserError, match=r"data\.raw\.train: .*x\.de is not the text .*prepare"):
        check(manifest(origin), expected(raw), tmp_path)
    swapped = expected(PairPath(raw.target, raw.source))
    with pytest.raises(UserError, match=r"x\.de is not the text"):
        check(manifest(origin), swapped, tmp_path)
    with pytest.raises(UserError, match=r"names 2 pair\(s\) of files, .* made from 1"):
        check(manifest(origin), expected(raw, raw=(raw, raw)), tmp_path)


def test_an_experiment_without_raw_text_says_nothing_about_it(
    raw: PairPath, origin: Origin, tmp_path: Path
) -> None:
    raw.source.write_text("something else\n")
    check(manifest(origin), expected(raw, raw=()), tmp_path)


def test_what_cannot_be_verified_is_one_line(
    raw: PairPath, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "valid"):
        check_origin(manifest(), tmp_path, split, expected(raw))
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot verify" in line and "raw text, cleaning, vocabulary" in line
    with pytest.raises(UserError, match=r"data\.source_lang"):  # this an old manifest does prove
        check(manifest(), expected(raw, languages=("de", "en")), tmp_path)
    raw.source.unlink()
    check(manifest(origin), expected(raw), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot verify" in line and "x.en: no such file here" in line


def test_a_copied_vocabulary_need_not_have_the_size_of_the_experiment(
    raw: PairPath, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(manifest(replace(origin, vocab=None), vocab_size=77), expected(raw), tmp_path)
    assert "data.vocab.size: 90, but" in capsys.readouterr().err


def test_labels_are_made_again_by_their_own_command(
    raw: PairPath, origin: Origin, tmp_path: Path
) -> None:
    labels = manifest(replace(origin, labels="runs/big"))
    with pytest.raises(UserError, match="run `ds-seq pseudo-label` again"):
        check(labels, expected(raw, vocab={**VOCAB, "size": 1}), tmp_path)


def test_a_model_reads_any_text_of_its_languages(
    raw: PairPath, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(manifest(origin), Expected(("en", "de"), "runs/x", clean={"nfkc": False}), tmp_path)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="shards are en -> de, but runs/x translates de -> en"):
        check(manifest(origin), Expected(("de", "en"), "runs/x"), tmp_path)
    check(manifest(origin), Expected(("en", "de"), "runs/x", clean={"nfkc": True}), tmp_path)
    assert "data.clean.nfkc=false, runs/x was trained with true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("zh", "zh_CN", True), ("pt-BR", "pt_PT", True), ("de", "en", False), ("de", "den", False)],
)
def test_same_language(one: str, other: str, same: bool) -> None:
    assert same_language(one, other) is same


def test_a_manifest_holds_the_origin(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "train.manifest.json"
    manifest(origin).write(path)
    assert Manifest.read(path) == manifest(origin)
    content = {**asdict(manifest(origin)), "version": 1}
    del content["origin"], content["corpora"]  # an older one
    path.write_text(json.dumps(content))
    assert Manifest.read(path) == replace(manifest(), version=1)
    for damaged in ([], {"raw": 3}, {"raw": [{"size": 1}]}):
        path.write_text(json.dumps({**asdict(manifest(origin)), "version": 1, "origin": damaged}))
        with pytest.raises(UserError, match="is damaged"):
            Manifest.read(path)
