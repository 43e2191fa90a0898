"""`ds-seq prepare`: what it makes, what it skips, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ds_seq.cli import main
from ds_seq.data.manifest import Manifest
from ds_seq.data.origin import Origin
from ds_seq.data.shards import ShardReader
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab


def _times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def _changed(folder: Path, before: dict[str, int]) -> set[str]:
    return {Path(name).name for name, time in _times(folder).items() if before.get(name) != time}


def test_raw_text_is_not_overwritten(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = tmp_path / "data" / "clean"
    clean.mkdir(parents=True)
    raw = tmp_path / "raw" / "valid.en"
    (clean / "train.en").symlink_to(raw)  # written before the validation text is read
    assert main(["prepare", str(experiment)]) == 2
    assert f"train.en: is also the input {raw}" in capsys.readouterr().err
    assert [path.name for path in clean.iterdir()] == ["train.en"]


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


def test_filters_are_reported_and_their_files_noticed(experiment: Path, tmp_path: Path) -> None:
    folder, scores = tmp_path / "data", tmp_path / "scores"
    scores.write_text("0.1\n" * 50 + "0.9\n" * 150)
    options = [f"data.clean.score_files=[{scores}]", "data.clean.min_score=0.5"]
    command = ["prepare", str(experiment), *options]
    assert main(command) == 0
    report = json.loads((folder / "clean" / "reports" / "train.json").read_text())
    assert report["dropped"]["score"] == 50
    examples = report["corpora"][0]["examples"]["score"]
    assert len(examples) == 20 and all(example["line"] <= 50 for example in examples)
    origin = Manifest.read(folder / "train.manifest.json").origin
    assert origin.clean is not None and origin.clean["min_score"] == 0.5
    scores.write_text("0.9\n" * 200)
    assert main(command) == 0
    report = json.loads((folder / "clean" / "reports" / "train.json").read_text())
    assert report["dropped"]["score"] == 0


def test_a_vocabulary_put_there_is_used_and_kept(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    mine = train_vocab([tmp_path / "raw/train.en", tmp_path / "raw/train.de"], folder / "m", 90)
    mine.save(folder / "vocab.model")
    assert main(["prepare", str(experiment), "--force"]) == 0
    assert SentencePieceTokenizer.load(folder / "vocab.model").fingerprint == mine.fingerprint
    assert ShardReader(folder, "train", mine.fingerprint).manifest.vocab_size == 90


def test_what_an_earlier_version_has_made_is_kept_and_its_rule_is_noted(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the new rule nor the new sample makes another vocabulary; `--force` does."""
    folder = tmp_path / "data"
    command = ["prepare", str(experiment), "data.vocab.normalization=nmt_nfkc"]
    assert main([*command, "data.vocab.input_sentence_size=10000000"]) == 0
    assert "rewrites text by the rule nmt_nfkc" in capsys.readouterr().out
    for name, missing in (("vocab", "normalization"), ("clean/train", "fold_spaces")):
        path = folder / f"{name}.json"
        record = json.loads(path.read_text())
        assert record["made_from"]["options"].pop(missing) in ("nmt_nfkc", False)
        path.write_text(json.dumps(record))
    manifests = {f"{split}.manifest.json" for split in ("train", "valid", "test")}
    for path in (folder / name for name in manifests):  # which had no origin, either
        replace(Manifest.read(path), origin=Origin()).write(path)
    before = _times(folder)
    assert main(["prepare", str(experiment)]) == 0
    assert _changed(folder, before) == manifests
    origin = json.loads((folder / "train.manifest.json").read_text())["origin"]
    assert origin["vocab"]["size"] == 120 and "max_words" in origin["clean"]
    unknown = {"normalization", "input_sentence_size", "fold_spaces"}
    assert not unknown & {*origin["vocab"], *origin["clean"]}
    note = "rewrites text by the rule nmt_nfkc (， -> ,"
    output = capsys.readouterr().out
    assert note in output and "`ds-seq prepare --force`" in output
    assert main(["check", str(experiment)]) == 0
    output = capsys.readouterr().out
    assert note in output and "data.vocab.normalization is identity" in output
    assert f"{folder / 'vocab.model'}: " in output
    assert main(["prepare", str(experiment), "--force"]) == 0
    assert SentencePieceTokenizer.load(folder / "vocab.model").normalization == "identity"
    assert (
        json.loads((folder / "vocab.json").read_text())["made_from"]["options"]["normalization"]
        == "identity"
    )
    capsys.readouterr()
    assert main(["check", str(experiment)]) == 0
    assert "# notes" not in capsys.readouterr().out


def test_references_that_no_translation_can_equal_are_reported(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    for side in ("en", "de"):  # in the training text, too, so that the characters are known
        for split in ("train", "valid"):
            with open(raw / f"{split}.{side}", "a", encoding="utf-8") as file:
                file.write("".join(f"x² … {side} {n}\n" for n in range(2)))
    assert main(["prepare", str(experiment)]) == 0
    assert "do not come out" not in capsys.readouterr().out
    assert main(["prepare", str(experiment), "data.vocab.normalization=nfkc"]) == 0
    output = capsys.readouterr().out
    assert "valid: 2 of 22 lines of" in output
    assert "line 21: 'x² … de 0' becomes 'x2 ... de 0'" in output


def test_sources_without_a_tag_are_reported(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", str(experiment), "data.vocab.user_symbols=[<2de>, <2fr>]"]
    assert main(command) == 0
    assert "no language tag" not in capsys.readouterr().out, "the tags may be of the target"
    for split in ("train", "valid", "test"):
        path = tmp_path / "raw" / f"{split}.en"
        lines = path.read_text(encoding="utf-8").splitlines()
        tagged = [("" if n == 2 else "<2de> ") + line for n, line in enumerate(lines)]
        path.write_text("\n".join(tagged) + "\n", encoding="utf-8")
    assert main(["prepare", str(experiment)]) == 0
    expected = "train: 199 of the first 200 sources begin with a language tag (line 1: <2de>)"
    assert expected in capsys.readouterr().out
    assert main(command) == 0
    expected = "train: 1 of 200 sources begin with no language tag (<2de>, <2fr>)"
    assert f"{expected}; the first is pair 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.raw.train=[]", "data.raw.train: missing"),
        ("data.raw.test.target=none.de", "none.de: no such file"),
        ("data.raw.test.target={raw}/train.de", "has 20, "),
        ("data.vocab.size=90000", "data.vocab.size to at most"),
        ("data.clean.min_words=100", "cleaning dropped all 200"),
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
