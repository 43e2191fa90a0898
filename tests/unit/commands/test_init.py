"""`ds-seq init`: the file that it prints is accepted as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_seq import cli
from ds_seq.config.load import load_experiment
from tests.data.toy import write_toy

FOLDERS = Path(__file__).parents[2] / "data" / "huggingface"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_toy(tmp_path, train=300, held_out=20)
    (tmp_path / "blank.de").write_text("\n" * 300)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ["--source", "train.en", "--target", "train.de"]
VALID = ["--valid-source", "valid.en", "--valid-target", "valid.de"]


def written(capsys: Capture, *arguments: str) -> Path:
    assert cli.main(["init", *TRAIN, *arguments]) == 0
    path = Path("my.yaml")
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


@pytest.mark.parametrize("arguments", [[], VALID, [*VALID, "--experts", "4", "--name", "no"]])
@pytest.mark.usefixtures("text")
def test_check_and_prepare_accept_it(arguments: list[str], capsys: Capture) -> None:
    path = written(capsys, *arguments)
    assert len(path.read_text().splitlines()) < 60 and path.read_text().count("#") > 8
    assert cli.main(["check", str(path)]) == 0
    assert cli.main(["prepare", str(path)]) == 0
    config = load_experiment(path)
    assert (config.data.source_lang, config.data.target_lang) == ("en", "de")
    assert (config.model.moe is not None) == ("--experts" in arguments)
    assert (config.train.validate_every is not None) == ("--valid-source" in arguments)
    assert (Path(config.data.dir) / "train.manifest.json").is_file()


@pytest.mark.usefixtures("text")
def test_one_language_means_summarization(capsys: Capture) -> None:
    languages = ["--source-lang", "en", "--target-lang", "en"]
    config = load_experiment(written(capsys, *VALID, *languages))
    assert (config.data.languages, config.data.long_pairs) == (("en", "en"), "truncate_source")
    assert config.data.clean.max_ratio > 1000


@pytest.mark.usefixtures("text")
def test_settings_grow_with_the_text(capsys: Capture) -> None:
    small = load_experiment(written(capsys))
    for side in ("en", "de"):
        path = Path(f"train.{side}")
        path.write_text(path.read_text(encoding="utf-8") * 400, encoding="utf-8")
    large = load_experiment(written(capsys))
    sizes = [config.model.num_params(1000) for config in (small, large)]
    assert sizes[0] is not None and sizes[1] is not None and sizes[0].total < sizes[1].total
    assert small.train.max_updates < large.train.max_updates


@pytest.mark.usefixtures("text")
def test_few_lines_and_odd_names(capsys: Capture) -> None:
    for side in ("en", "de"):
        lines = Path(f"train.{side}").read_text(encoding="utf-8").splitlines()[:3]
        Path(f"a #1: {side}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = ["--source", "a #1: en.txt", "--target", "a #1: de.txt"]
    assert cli.main(["init", *names]) == 2
    assert "add --source-lang CODE" in capsys.readouterr().err
    assert cli.main(["init", *names, "--source-lang", "no", "--target-lang", "de"]) == 0
    Path("my.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert cli.main(["prepare", "my.yaml"]) == 0
    assert load_experiment("my.yaml").data.source_lang == "no"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "train.en", "--target", "none.de"], "none.de: no such file"),
        (["--source", "train.en", "--target", "valid.de"], "differ in the number of lines"),
        (["--source", "train.en", "--target", "train.en"], "both languages are 'en'"),
        ([*TRAIN, *VALID[:2]], "--valid-source names 1 file(s), but --valid-target 0"),
        ([*TRAIN, "--experts", "1"], "--experts 1: give 2 or more"),
        ([*TRAIN[:2]], "--source names 1 file(s), but --target 0"),
        ([], "missing: --source and --target, or --data"),
        (["--source", "train.en", "--target", "blank.de"], "blank.de: one of them has no text"),
        (
            ["--source", "tr\udcff.en", "--target", "train.de"],
            "'tr\\udcff.en': a file with such a name",
        ),
        (
            ["--source", "tr\x1b.en", "--target", "train.de"],
            "'tr\\x1b.en': a file with such a name",
        ),
        (["--data", "tr\x1b.tsv"], "'tr\\x1b.tsv': a file with such a name"),
    ],
)
@pytest.mark.usefixtures("text")
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: Capture) -> None:
    assert cli.main(["init", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def in_forms(folder: Path) -> None:
    """Write the toy text as a table, JSON lines and a folder, too."""
    for split in ("train", "valid"):
        paths = (folder / f"{split}.{code}" for code in ("en", "de"))
        sides = [path.read_text(encoding="utf-8").splitlines() for path in paths]
        rows = list(zip(*sides, strict=True))
        table = "".join(f"{target}\t{source}\n" for source, target in rows)
        (folder / f"{split}.tsv").write_text("de\ten\n" + table, encoding="utf-8")
        objects = (json.dumps({"translation": {"en": s, "de": t}}) for s, t in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(objects) + "\n")
    (folder / "set").mkdir()
    for source, target in (("train.en", "train.source"), ("train.de", "train.target")):
        (folder / "set" / target).write_bytes((folder / source).read_bytes())


JSON_KEYS = ["--keys", "translation.en", "translation.de"]
EN_DE = ["--source-lang", "en", "--target-lang", "de"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--data", "train.tsv", "--valid-data", "valid.tsv", "--columns", "2", "1", "--header"]
            + EN_DE,
            "    train: {tsv: train.tsv, columns: [2, 1], header: true}",
        ),
        (
            ["--data", "train.jsonl", *JSON_KEYS, *VALID],
            "    train: {jsonl: train.jsonl, keys: [translation.en, translation.de]}",
        ),
        (["--data", "set", *EN_DE], "  raw: set"),
        (["--data", "set", *VALID, *EN_DE], "    folder: set"),
        ([*TRAIN, "--data", "set", *EN_DE], "      - {folder: set}"),
    ],
)
def test_text_in_any_form(text: Path, arguments: list[str], line: str, capsys: Capture) -> None:
    in_forms(text)
    assert cli.main(["init", *arguments]) == 0
    path = Path("my.yaml")
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert any(found.startswith(line) for found in path.read_text().splitlines())
    assert cli.main(["check", str(path)]) == 0
    assert f"{600 if 'train.en' in arguments else 300:,} sentence pairs" in path.read_text()
    assert (load_experiment(path).train.validate_every is not None) == ("alid" in str(arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "train.tsv"], "train.tsv: add --source-lang CODE"),
        (["--data", "train.en", *EN_DE], "train.en: should be a .tsv, .jsonl, .tmx or .xml"),
        (["--data", "train.jsonl", *EN_DE], "train.jsonl: line 1 has no key en; its keys are 'tr"),
        (["--data", "train.tsv", "--columns", "0", "1", *EN_DE], "greater than or equal to 1"),
    ],
)
def test_mistakes_in_forms_are_one_line(
    text: Path, arguments: list[str], words: str, capsys: Capture
) -> None:
    in_forms(text)
    assert cli.main(["init", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.usefixtures("text")
def test_a_model_of_transformers_is_fine_tuned_by_four_commands(capsys: Capture) -> None:
    folder = str(FOLDERS / "fsmt")
    imported = ["import", "huggingface", folder, "--out", "runs/fsmt", "--no-compare"]
    assert cli.main(imported) == 0
    capsys.readouterr()
    path = written(capsys, *VALID, "--from-model", "runs/fsmt", "--freeze", "encoder", "embeddings")
    assert cli.main(["check", str(path)]) == 0 and cli.main(["prepare", str(path)]) == 0
    config, base = load_experiment(path), load_experiment("runs/fsmt/config.yaml")
    assert (config.model, config.data.vocab) == (base.model, base.data.vocab)
    assert config.generation == base.generation
    assert (config.train.init_from, config.train.freeze) == ("runs/fsmt", ["encoder", "embeddings"])
    capsys.readouterr()
    # without an import, the folder says the same
    direct = load_experiment(written(capsys, *VALID, "--from-model", folder))
    assert (direct.model, direct.generation) == (base.model, base.generation)
    assert direct.data.vocab == base.data.vocab and direct.train.init_from == folder
    other = written(capsys, "--from-model", "runs/fsmt", "--source-lang", "cs", "--name", "x")
    assert load_experiment(other).data.source_lang == "cs"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from-model", "nowhere"], "--from-model nowhere: no such folder"),
        (["--from-model", "train.en"], "--from-model train.en: is a file; give a run folder"),
        (["--from-model", "."], "has no config.yaml; give a run folder"),
        (["--freeze", "encoder"], "--freeze: is for --from-model"),
    ],
)
@pytest.mark.usefixtures("text")
def test_mistakes_of_fine_tuning_are_one_line(
    arguments: list[str], words: str, capsys: Capture
) -> None:
    assert cli.main(["init", *TRAIN, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
