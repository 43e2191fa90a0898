"""What files say about translations, through the command `ds-seq generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ds_seq
from ds_seq.commands import generate
from ds_seq.errors import EXIT_USER_ERROR, run_command
from ds_seq.models import build_model
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

LINES = ["a dog", "I see", "", "dogs in a wood"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing, of a vocabulary with a tag."""
    folder = tmp_path_factory.mktemp("steered")
    write_toy(folder, 200, 10)
    sides = [folder / "train.en", folder / "train.de"]
    vocab = train_vocab(sides, folder / "vocab", 130, user_symbols=["<2de>"])
    config = experiment({"max_positions": 24})
    model = build_model(config.model, len(vocab), 1, 0, seed=5)
    with torch.no_grad():  # let it say different things in different places
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return write_run(folder / "run", config, vocab, {1: model})


@pytest.fixture
def folder(tmp_path: Path, run: Path) -> Path:
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in LINES))
    return tmp_path


def call(run: Path, folder: Path, *arguments: object) -> int:
    files = ["--input", folder / "in", "--output", folder / "out"]
    return run_command(generate.main, [str(run), *map(str, [*files, *arguments])])


def translations(folder: Path) -> list[str]:
    return (folder / "out").read_text().splitlines()


def test_prefixes_and_a_tag(run: Path, folder: Path) -> None:
    (folder / "prefix").write_text("ein Kind\n\ndie Frau\n  der Mann \n")
    assert call(run, folder, "--prefix", folder / "prefix") == 0
    first, free, empty, last = translations(folder)
    assert first.startswith("ein Kind")
    assert last.startswith("der Mann")
    assert empty == ""
    assert call(run, folder, "--target-tag", "<2de>", "--prefix", folder / "prefix") == 0
    first, tagged, empty, last = translations(folder)
    assert first.startswith("ein Kind"), "the tag is no part of the text"
    assert "<2de>" not in tagged
    assert empty == ""
    assert call(run, folder) == 0
    assert translations(folder)[1] == free


def test_a_tag_needs_no_text_beforehand(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("a dog\nI see\n")
    with (tmp_path / "in").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        arguments = [str(run), "--input", "-", "--target-tag", "<2de>", "--buffer-size", "1"]
        assert run_command(generate.main, arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    assert not any(line.startswith("<2de>") for line in lines)


def test_a_tag_takes_its_place_of_the_length(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocab = SentencePieceTokenizer.load(run / "vocab.model")
    texts = ["a " * 11 + letter for letter in "abcdefghijklmnopqrstuvwxyz"]
    text = next(text for text in texts if len(vocab.encode(text)) == 23)
    (folder / "prefix").write_text(f"{text}\n\n\n\n")
    assert call(run, folder, "--prefix", folder / "prefix") == 0
    assert translations(folder)[0] == text
    arguments = ["--target-tag", "<2de>", "--prefix", folder / "prefix"]
    assert call(run, folder, *arguments) == EXIT_USER_ERROR
    assert "prefix:1: has 24 tokens" in capsys.readouterr().err


def test_standard_input_needs_a_prefix_for_every_line(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "prefix").write_text("ein\n")
    for option in ("--prefix", "--constraints"):
        with (folder / "in").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            arguments = [str(run), "--input", "-", option, str(folder / "prefix")]
            assert run_command(generate.main, arguments) == EXIT_USER_ERROR
        assert "has 1 lines but the input has 4" in capsys.readouterr().err


def test_files_are_read_as_the_input_is(run: Path, folder: Path) -> None:
    """Control characters and spaces at the ends are not part of a prefix."""
    (folder / "prefix").write_text(" ein\x07 Kind \n\n\n\n")
    assert call(run, folder, "--prefix", folder / "prefix") == 0
    assert translations(folder)[0].startswith("ein Kind")


@pytest.mark.parametrize("order", ["any", "given"])
def test_phrases(run: Path, folder: Path, order: str) -> None:
    phrases = [["Kind", "die Frau"], [], ["kauft"], ["der", "Kind", "der"]]
    (folder / "phrases").write_text("".join("\t".join(own) + "\n" for own in phrases))
    assert (
        call(run, folder, "--constraints", folder / "phrases", "--constraint-order", order,
             "--format", "jsonl", "--n-best", 3) == 0
    )  # fmt: skip
    vocab = SentencePieceTokenizer.load(run / "vocab.model")
    for own, line in zip(phrases, translations(folder), strict=True):
        answer = json.loads(line)
        for hypothesis in answer["hypotheses"]:
            text = hypothesis["text"]
            assert all(
                text.count(phrase) >= own.count(phrase) for phrase in own if answer["source"]
            )
            if order == "given" and answer["source"]:
                place = 0
                for phrase in own:
                    place = text.index(phrase, place) + len(phrase)
    assert vocab.symbols.unk not in vocab.encode(
        "Kind die Frau der kauft"
    )  # or it would prove little


def test_allowed_outputs(run: Path, folder: Path) -> None:
    allowed = ["ein Kind", "ein Kind kauft", "meine Schwester", "ein"]
    (folder / "list").write_text("".join(f" {line}\n" for line in allowed))
    assert (
        call(run, folder, "--allowed", folder / "list", "--format", "tsv", "--n-best", 4,
             "--beam", 4) == 0
    )  # fmt: skip
    rows = [line.split("\t") for line in translations(folder)]
    for number in (1, 2, 4):
        texts = [text for line, _, text in rows if line == str(number)]
        assert sorted(texts) == sorted(f" {line}" for line in allowed), "as the file has them"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("a\nb\n", ["--prefix"], "--prefix FILE: has 2 lines but the input has 4"),
        ("a\n" * 5, ["--constraints"], "--constraints FILE: has 5 lines but the input has 4"),
        ("a\n\u2665\n\n\n", ["--prefix"], "--prefix FILE:2: '\u2665' has characters"),
        ("\n\na\tein \u2665\n\n", ["--constraints"], "--constraints FILE:3: 'ein \u2665' has"),
        ("a\n\u2665\n", ["--allowed"], "--allowed FILE:2: '\u2665' has characters"),
        ("a\n\nb\n", ["--allowed"], "--allowed FILE:2: is empty"),
        ("", ["--allowed"], "--allowed FILE: is empty"),
        ("a " * 24 + "\n\n\n\n", ["--prefix"], "--prefix FILE:1: has 48 tokens"),
        ("\n" + "a\t" * 24 + "\n\n\n", ["--constraints"], "--constraints FILE:2: has 48 tokens"),
        ("a " * 24 + "\n", ["--allowed"], "--allowed FILE:1: has 48 tokens"),
        ("\n" * 4, ["--sampling", "true", "--constraints"], "cannot be combined with sampling"),
        (
            "\n" * 4,
            ["--diverse-siblings", "1", "--constraints"],
            "--constraints FILE: cannot be combined with diverse beams",
        ),
    ],
)
def test_mistakes_in_files(
    run: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    arguments: list[str],
    message: str,
) -> None:
    file = folder / "file"
    file.write_text(content)
    assert call(run, folder, *arguments, file) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert message.replace("FILE", str(file)) in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-tag", "<2fr>"], "--target-tag <2fr>: is not one of data.vocab.user_symbols"),
        (["--target-tag", "\u2665"], "of which there are: <2de>"),
        (["--target-tag", "a"], "--target-tag a: is not one of data.vocab.user_symbols"),
        (["--constraint-order", "given"], "--constraint-order: has no effect"),
        (["--prefix", "nowhere"], "nowhere: no such file"),
    ],
)
def test_mistakes_in_arguments(
    run: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(run, folder, *arguments) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_unfinished_work_belongs_to_its_files(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Work begun with other prefixes must not be resumed."""
    (folder / "prefix").write_text("ein\n" * 4)
    with pytest.MonkeyPatch.context() as patch:  # as if killed before it could tidy up
        patch.setattr(generate.PartialOutput, "remove", lambda self: None)
        assert call(run, folder, "--prefix", folder / "prefix") == 0
    assert call(run, folder, "--prefix", folder / "prefix", "--resume") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate.PartialOutput, "remove", lambda self: None)
        assert call(run, folder, "--prefix", folder / "prefix") == 0
    (folder / "prefix").write_text("wir\n" * 4)
    capsys.readouterr()
    assert call(run, folder, "--prefix", folder / "prefix", "--resume") == EXIT_USER_ERROR
    assert "prefix" in capsys.readouterr().err


@pytest.fixture(scope="module")
def old_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose vocabulary rewrites text, as those of version 0.1."""
    folder = tmp_path_factory.mktemp("old")
    write_toy(folder, 200, 10)
    (folder / "signs").write_text("x² … ein Kind 2.\n" * 3, encoding="utf-8")
    sides = [folder / "train.en", folder / "train.de", folder / "signs"]
    vocab = train_vocab(sides, folder / "vocab", 130, normalization="nmt_nfkc")
    config = experiment({"max_positions": 24})
    model = build_model(config.model, len(vocab), 1, 0, seed=5)
    return write_run(folder / "run", config, vocab, {1: model})


def test_allowed_outputs_come_out_as_the_file_spells_them(
    old_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ["x²", "ein Kind …", "ein\u00a0Kind ", "  die  Frau"]
    (folder / "list").write_text("".join(f"{line}\n" for line in allowed), encoding="utf-8")
    arguments = ["--allowed", folder / "list", "--n-best", 4, "--beam", 4]
    for mbr in ([], ["--mbr", "chrf"]):
        assert call(old_run, folder, *arguments, "--format", "jsonl", *mbr) == 0
        for line, written in zip(LINES, translations(folder), strict=True):
            texts = {found["text"] for found in json.loads(written)["hypotheses"]}
            assert texts <= set(allowed) if line else texts == {""}
            assert mbr or not line or texts == set(allowed)
    (folder / "list").write_text("x²\nein\nx2\n", encoding="utf-8")
    assert call(old_run, folder, "--allowed", folder / "list") == 0
    warning = "1 line(s) of --allowed"
    assert warning in (printed := capsys.readouterr().err) and "line(s) 3" in printed


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        (
            "--prefix",
            "x²\n\n\n\n",
            ":1: 'x²' would come out as 'x2', because the vocabulary has the",
        ),
        ("--prefix", "\nein\u00a0Kind\n\n\n", r":2: 'ein\xa0Kind' would come out as 'ein Kind'"),
        ("--constraints", "\n\nein\tKind …\n\n", ":3: 'Kind …' would come out as 'Kind ...'"),
    ],
)
def test_what_would_come_out_changed_is_refused(
    old_run: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    content: str,
    message: str,
) -> None:
    (folder / "file").write_text(content, encoding="utf-8")
    assert call(old_run, folder, option, folder / "file") == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "data.vocab.normalization is identity" in line


def test_a_tag_is_neither_written_nor_scored(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = ["--target-tag", "<2de>", "--align", "--format", "jsonl"]
    assert call(run, folder, *tag) == 0
    hypotheses = [json.loads(line)["hypotheses"][0] for line in translations(folder)]
    texts = [found["text"] for found in hypotheses]
    assert not any("<2de>" in text for text in texts)
    assert any(texts)
    for found in hypotheses:
        numbers = [int(pair.split("-")[1]) for pair in found["alignment"].split()]
        assert all(number < len(found["text"].split()) for number in numbers)
    for begin in ("", "<2de> "):  # a reference of a tagged text, or of raw text
        (folder / "ref").write_text("".join(f"{begin}{text}\n" for text in texts))
        assert call(run, folder, "--target-tag", "<2de>", "--reference", folder / "ref") == 0
        assert translations(folder) == texts
        assert " = 100.00 " in capsys.readouterr().out, "the translations are their own reference"


def test_a_tag_comes_before_allowed_outputs(run: Path, folder: Path) -> None:
    (folder / "list").write_text("ein Kind\ndie Frau\n")
    assert call(run, folder, "--allowed", folder / "list", "--target-tag", "<2de>") == 0
    assert {text for text in translations(folder) if text} <= {"ein Kind", "die Frau"}
    assert sum(map(bool, translations(folder))) == 3


def test_sources_without_a_tag_are_reported(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["<2de> a dog", "I see", "", "<2fr> dogs"]  # one without, one that is unknown
    (folder / "in").write_text("".join(f"{line}\n" for line in lines))
    message = "warning: 2 source line(s) begin with no language tag of the vocabulary (<2de>)"
    assert call(run, folder) == 0
    printed = capsys.readouterr().err
    assert message in printed and "line(s) 2, 4" in printed
    with (folder / "in").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert run_command(generate.main, [str(run), "--input", "-", "--buffer-size", "2"]) == 0
    assert message in capsys.readouterr().err
    assert call(run, folder, "--target-tag", "<2de>") == 0
    assert "language tag" not in capsys.readouterr().err, "that tag says the language"
    (folder / "in").write_text("<2de> a dog\n\n")
    assert call(run, folder) == 0
    assert "language tag" not in capsys.readouterr().err
    model = ds_seq.load(run)
    with pytest.warns(UserWarning, match=r"1 source line\(s\) begin with no language tag .*: 2"):
        model.translate(["<2de> a dog", "a dog"])
    with pytest.warns(UserWarning, match="no language tag"):
        model.score(["a dog"], ["ein"])
