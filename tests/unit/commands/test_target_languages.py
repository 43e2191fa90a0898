"""`ds-seq generate --target-lang`: the same as tags in the text, which training has added."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ds_seq
from ds_seq.commands import generate, interactive
from ds_seq.errors import EXIT_USER_ERROR, UserError, run_command
from ds_seq.models import build_model
from ds_seq.text.tags import tag_of
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.unit.runs.made import experiment, write_run

LINES = ["a dog", "I see", "", "dogs in a wood"]
TAGS = ["<2de>", "<fr>", "<note>"]
MIXING = {"language_tags": {"de": "<2de>", "fr": "<fr>"}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that translates into two languages, one that has tags in its text, and a plain one.

    They have learned nothing, so each tag leads somewhere else.
    """
    lab = tmp_path_factory.mktemp("languages")
    write_toy(lab, 200, 10)
    for name, symbols in (("many", TAGS), ("text", TAGS), ("plain", [])):
        vocab = train_vocab(
            [lab / "train.en", lab / "train.de"], lab / name, 130, user_symbols=symbols
        )
        corpora = {
            code: {"source": "x", "target": f"x.{code}", "languages": ["en", code]}
            for code in ("de", "fr")
        }
        test = [{"source": str(lab / "in"), "target": str(lab / "out"), "languages": ["en", "fr"]}]
        mixed = {"corpora": corpora, "mixing": MIXING, "raw": {"test": test}}
        vocab_section = {"size": 130, "user_symbols": symbols}
        config = experiment(
            {"max_positions": 24}, vocab=vocab_section, **(mixed if name == "many" else {})
        )
        model = build_model(config.model, len(vocab), 1, 0, seed=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        write_run(lab / f"{name}.run", config, vocab, {1: model})
    for file in ("in", "out"):
        (lab / file).write_text("".join(f"{line}\n" for line in LINES))
    return lab


def _call(lab: Path, name: str, *arguments: object, lines: list[str] | None = None) -> int:
    given = lab / "given"
    given.write_text("".join(f"{line}\n" for line in LINES if lines is None))
    if lines is not None:
        given.write_text("".join(f"{line}\n" for line in lines))
    run = [lab / f"{name}.run", "--input", given, "--output", lab / "found", *arguments]
    return run_command(generate.main, list(map(str, run)))


def _translations(lab: Path) -> list[str]:
    return (lab / "found").read_text().splitlines()


def _tagged(*tags: str) -> list[str]:
    return [f"{tag} {line}" if line else "" for tag, line in zip(tags, LINES, strict=True)]


@pytest.mark.parametrize("name", ["many", "text"])
def test_a_language_is_the_tag_in_the_text(lab: Path, name: str) -> None:
    found = {}
    for code, tag in (("de", "<2de>"), ("fr", "<fr>")):
        assert _call(lab, name, lines=_tagged(*[tag] * 4)) == 0
        expected = _translations(lab)
        assert _call(lab, name, "--target-lang", code) == 0
        assert _translations(lab) == expected
        assert expected[2] == ""
        found[code] = expected
    assert found["de"] != found["fr"]


def test_each_line_may_have_a_language(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "codes").write_text("fr\nde\nde\nfr\n")
    assert _call(lab, "many", lines=_tagged("<fr>", "<2de>", "<2de>", "<fr>")) == 0
    expected = _translations(lab)
    assert _call(lab, "many", "--target-langs", lab / "codes") == 0
    assert _translations(lab) == expected
    with (lab / "in").open() as stream:  # standard input is read whole then
        monkeypatch.setattr("sys.stdin", stream)
        run = [lab / "many.run", "--input", "-", "--target-langs", lab / "codes"]
        capsys.readouterr()
        assert run_command(generate.main, list(map(str, run))) == 0
    assert capsys.readouterr().out.splitlines() == expected


def test_the_library_takes_languages_as_the_command_does(lab: Path) -> None:
    model = ds_seq.load(lab / "many.run", device="cpu")
    assert _call(lab, "many", "--target-lang", "fr") == 0
    assert model.translate(LINES, target_lang="fr") == _translations(lab)
    assert model.translate(LINES[0], target_lang=["fr"]) == _translations(lab)[0]
    assert _call(lab, "many", lines=_tagged("<fr>", "<2de>", "<2de>", "<fr>")) == 0
    assert model.translate(LINES, target_lang=["fr", "de", "de", "fr"]) == _translations(lab)


@pytest.mark.parametrize(
    ("lines", "languages", "words"),
    [
        (
            LINES,
            "es",
            "target_lang es: .* knows no tag of this language; its tags are <2de>",
        ),
        (LINES, ["fr", "de", "fr", "es"], "target_lang of line 4: es: .* knows no tag"),
        (LINES, ["fr", "de"], "2 language codes for 4 lines; give one for all, or one per line"),
        (["a", "<fr> b"], "fr", "target_lang: line 2 of the input begins with a language tag"),
    ],
)
def test_the_library_names_a_language_that_does_not_fit(
    lab: Path, lines: list[str], languages: str | list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        ds_seq.load(lab / "many.run", device="cpu").translate(lines, target_lang=languages)


def test_text_that_streams_gets_its_tag(
    lab: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _call(lab, "many", "--target-lang", "fr") == 0
    with (lab / "in").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        run = [str(lab / "many.run"), "--input", "-", "--target-lang", "fr", "--buffer-size", "2"]
        capfd.readouterr()
        assert run_command(generate.main, run) == 0
    assert capfd.readouterr().out.splitlines() == _translations(lab)


def test_a_session_has_a_language(
    lab: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for options, line in (([], b"<fr> a dog\n"), (["--target-lang", "fr"], b"a dog\n")):
        stdin = SimpleNamespace(buffer=io.BytesIO(line), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stdin)
        assert run_command(interactive.main, [str(lab / "many.run"), *options]) == 0
        shown.append(capfd.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_the_test_text_of_the_experiment_has_its_tags(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the validation of the training gives it; an option wins."""
    outputs = []
    for options in ([], ["--target-lang", "fr"], ["--target-lang", "de"]):
        run = [str(lab / "many.run"), "--output", str(lab / "found"), *options]
        assert run_command(generate.main, run) == 0
        outputs.append(_translations(lab))
    assert outputs[0] == outputs[1] != outputs[2]
    assert "no language tag" not in capsys.readouterr().err


def test_mistakes_are_one_line(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "codes").write_text("fr\nit\nde\nfr\n")
    (lab / "few").write_text("fr\n")
    cases: list[tuple[str, list[object], list[str] | None, str]] = [
        ("many", ["--target-lang", "it"], None, "--target-lang it: small knows no tag of this la"),
        ("plain", ["--target-lang", "de"], None, "--target-lang de: small has no language tags"),
        ("many", ["--target-langs", lab / "codes"], None, "codes:2: it: small knows no tag of"),
        ("many", ["--target-langs", lab / "few"], None, "few: has 1 lines but the input has 4"),
        ("many", ["--target-langs", lab / "few", "--target-lang", "de"], None, "each line, too"),
        ("many", ["--target-lang", "de"], _tagged(*["<fr>"] * 4), "line 1 of the input begins"),
    ]
    for name, options, lines, words in cases:
        assert _call(lab, name, *options, lines=lines) == EXIT_USER_ERROR
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


@pytest.mark.parametrize(
    ("language", "tag"),
    [
        ("de", "<2de>"),
        ("fr", "[to_fr]"),
        ("cs", "__cs__"),
        ("deu", ">>deu<<"),
        ("ru", "<ru>"),
        ("en_XX", "en_XX"),
        ("zh", None),
    ],
)
def test_the_language_of_a_tag(language: str, tag: str | None) -> None:
    tags = ["<2de>", "[to_fr]", "__cs__", ">>deu<<", "<ru>", "en_XX", "<sep>"]
    assert tag_of(language, tags) == tag
