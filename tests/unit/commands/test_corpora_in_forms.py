"""Named corpora and held-out texts in the forms in which people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.cli import main
from ds_seq.config.load import load_experiment
from ds_seq.data.expected import raw_files
from ds_seq.data.manifest import Manifest
from ds_seq.tasks.mix import held_out_texts
from ds_seq.tasks.translation import read_files
from tests.data.toy import write_toy

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "raw"
    write_toy(folder, 60, 10)
    paths = [folder / f"train.{code}" for code in ("en", "de")]
    lines = [path.read_text(encoding="utf-8").split("\n") for path in paths]
    rows = [f"{source}\t{target}\n" for source, target in list(zip(*lines, strict=True))[:60]]
    (folder / "a.tsv").write_text("en\tde\n" + "".join(rows[:20]), encoding="utf-8")
    (folder / "b.tsv").write_text("en\tde\n" + "".join(rows[20:30]), encoding="utf-8")
    (folder / "set").mkdir()
    for side, name in enumerate(("source", "target")):
        rest = "".join(f"{line}\n" for line in lines[side][30:60])
        (folder / "set" / f"train.{name}").write_text(rest, encoding="utf-8")
    for name in ("valid", "test"):
        for code, side in (("en", "source"), ("de", "target")):
            content = (folder / f"{name}.{code}").read_bytes()
            (folder / "set" / f"{name}.{side}").write_bytes(content)
    monkeypatch.chdir(folder)
    return folder


def experiment(**data: Any) -> str:
    known = {"source_lang": "en", "target_lang": "de", "vocab": {"size": 90}}
    content = {"name": "x", "data": {**known, "dir": "data", **data}}
    Path("x.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "x.yaml"


CORPORA = {
    "tables": {"tsv": ["a.tsv", "b.tsv"], "header": True, "weight": 2.0},
    "folder": {"folder": "set", "clean": {"max_words": 90}},
}
TWO = {"source": ["valid.en", "test.en"], "target": ["valid.de", "test.de"]}


def test_corpora_of_any_form_are_those_of_two_files(raw: Path) -> None:
    path = experiment(corpora=CORPORA, raw={"valid": [TWO, {"folder": "set"}], "folder": "set"})
    assert main(["check", path]) == 0
    assert main(["prepare", path]) == 0
    plain = {"source": "train.en", "target": "train.de"}
    held = {"source": "valid.en", "target": "valid.de"}
    other = experiment(dir="plain", raw={"train": plain, "valid": held})
    assert main(["prepare", other]) == 0
    for name in ("train.en", "train.de"):
        assert Path("data/clean", name).read_bytes() == Path("plain/clean", name).read_bytes()
    corpora = Manifest.read(Path("data/train.manifest.json")).corpora
    assert [(c.name, c.first_row, c.num_rows) for c in corpora] == [
        ("tables", 0, 30), ("folder", 30, 30)
    ]  # fmt: skip
    valid = Manifest.read(Path("data/valid.manifest.json")).corpora
    assert [(c.first_row, c.num_rows) for c in valid] == [(0, 20), (20, 10)]
    assert Manifest.read(Path("data/test.manifest.json")).pairs == 10


def test_each_file_of_a_held_out_text_has_its_languages_and_tags(raw: Path) -> None:
    tagged = {**TWO, "tag": "<bt>", "languages": ["en", "fr"]}
    path = experiment(
        corpora={**CORPORA, "french": {"tsv": "b.tsv", "languages": ["en", "fr"]}},
        raw={"valid": [{"folder": "set"}, tagged]},
        vocab={"size": 90, "user_symbols": ["<bt>", "<2de>", "<2fr>"]},
        mixing={"language_tags": {"de": "<2de>", "fr": "<2fr>"}},
    )
    data = load_experiment(path).data
    texts = read_files("valid", raw_files(data, "valid"))
    kinds = held_out_texts(data, "valid")
    assert len(texts) == len(kinds) == 3
    assert [kind.languages[1] for kind in kinds] == ["de", "fr", "fr"]
    assert [kind.tags for kind in kinds] == [("<2de>",), ("<2fr>", "<bt>"), ("<2fr>", "<bt>")]


@pytest.mark.parametrize(
    ("corpora", "words"),
    [
        ({"a": {"tsv": "no.tsv"}}, "data.corpora.a: no.tsv: no such file"),
        ({"a": {"folder": "none"}}, "data.corpora.a: none: no such folder"),
        ({"a": {"folder": "."}, "b": {"tsv": "a.tsv"}}, None),
        ({"a": {"source": "train.en"}}, "data.corpora.a.target: missing"),
        (
            {"a": {"tsv": "a.tsv", "jsonl": "b"}},
            "data.corpora.a.source: give one of source, text",
        ),
    ],
)
def test_mistakes_name_the_corpus(
    corpora: dict[str, Any], words: str | None, raw: Path, capsys: Capture
) -> None:
    path = experiment(corpora=corpora, raw={"valid": TWO})
    assert main(["check", path]) == (0 if words is None else 2)
    if words is not None:
        errors = capsys.readouterr().err.splitlines()
        assert any(words in line for line in errors), errors


def test_a_corpus_whose_columns_change_is_made_again(raw: Path, capsys: Capture) -> None:
    path = experiment(corpora=CORPORA, raw={"valid": TWO})
    assert main(["prepare", path]) == 0
    capsys.readouterr()
    assert main(["prepare", path]) == 0
    assert "train: clean text is up to date" in capsys.readouterr().out
    assert main(["prepare", path, "data.corpora.tables.columns=[2, 1]"]) == 0
    assert "train: kept 60 of 60 pairs" in capsys.readouterr().out
