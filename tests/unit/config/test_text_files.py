"""The forms of raw text in an experiment file, and the files that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.load import dump, load_experiment
from ds_seq.config.needs import unmet
from ds_seq.config.raw_text import SIGNATURE, raw_texts, signature_command
from ds_seq.config.text_files import RawConfig, SplitConfig
from ds_seq.config.yaml_file import parse_value
from ds_seq.errors import UserError
from tests.unit.config.fixture_types import WriteFile
from tests.unit.config.test_load import complaints

EN_DE = ("en", "de")


def named(entry: dict[str, Any] | list[dict[str, Any]], split: str = "train") -> list[Any]:
    raw = RawConfig.model_validate({split: entry})
    return raw_texts(raw, split, EN_DE)


def test_each_form_names_its_files() -> None:
    (two,) = named({"source": "a.en", "target": "a.de.gz"})
    assert (two.source, two.target, two.form) == ("a.en", "a.de.gz", "lines")
    several = named([{"source": ["a", "b"], "target": ["c", "d"]}, {"source": "e", "target": "f"}])
    assert [(text.source, text.target) for text in several] == [("a", "c"), ("b", "d"), ("e", "f")]
    (table,) = named({"tsv": "x.tsv.zst", "columns": [3, 1], "header": True})
    assert (table.names, table.form, table.columns, table.header) == (
        ("x.tsv.zst",), "tsv", (3, 1), True
    )  # fmt: skip
    first, second = named({"jsonl": ["x", "y"], "keys": ["translation.en", "translation.de"]})
    assert (first.source, second.source) == ("x", "y")
    assert first.keys == ("translation.en", "translation.de")
    (memory,) = named({"tmx": "x.tmx"})
    assert (memory.form, memory.keys) == ("tmx", EN_DE)
    for name in ("x-src.en.sgm", "x.en.SGML.gz", "x.en.xml"):
        assert named({"source": name, "target": name})[0].form == "segments"
    assert named({"xml": "x.xml"})[0].form == "xml"


def test_invalid_text_stops_all_but_training() -> None:
    files = {"source": "a", "target": "b"}
    assert named(files)[0].invalid_utf8 == "drop"
    assert named(files, "valid")[0].invalid_utf8 == "stop"
    assert named({**files, "invalid_utf8": "replace"}, "test")[0].invalid_utf8 == "replace"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{source: a}", ".target: missing. File of target sentences"),
        ("{target: a}", ".source: missing. File of source sentences"),
        ("{}", ".source: give one of source, text, tsv, jsonl, tmx, xml, folder; none is given"),
        ("{tsv: a, jsonl: b}", ".source: give one of source, text, tsv, jsonl, tmx, xml, folder; "),
        ("{source: [a, b], target: c}", ".target: names 1 file(s), but source 2; give as many"),
        ("{source: [], target: []}", ".source: names no file"),
        ("{source: a, target: b, columns: [2, 1]}", ".columns: belongs to tsv, not to source"),
        ("{tsv: a, keys: [x, y]}", ".keys: belongs to jsonl or tmx or xml or folder, not to tsv"),
        ("{tsv: a, columns: [0, 1]}", ".columns[0]: should be at least 1, not 0"),
        ("{tsv: a, columns: 2}", ".columns: should be 2 numbers, such as [1, 2]"),
        ("{jsonl: a, keys: x}", ".keys: should be 2 names in a list, such as [a, b]"),
        ("{jsonl: a, keys: [x, x]}", ".keys: x is both source and target"),
        ("{tmx: a, invalid_utf8: drop}", ".invalid_utf8: drop is not possible in XML"),
        ("{tsv: a, invalid_utf8: skip}", ".invalid_utf8: should be"),
    ],
)
def test_what_fits_no_form(experiment: Path, entry: str, words: str) -> None:
    (line,) = complaints(experiment, f"data.raw.test={entry}")
    assert line.startswith(f"command line: data.raw.test{words}"), line


def test_another_form_replaces_that_of_the_parent(write: WriteFile, experiment: Path) -> None:
    child = write("child.yaml", "extends: small.yaml\ndata: {raw: {valid: {tsv: x.tsv}}}\n")
    (valid,) = load_experiment(child).data.raw.valid
    assert (valid.tsv, valid.source) == ("x.tsv", None)
    (other,) = load_experiment(child, ["data.raw.valid.columns=[2, 1]"]).data.raw.valid
    assert (other.tsv, other.columns) == ("x.tsv", (2, 1))


def test_a_dump_has_no_keys_of_other_forms(experiment: Path) -> None:
    config = load_experiment(experiment, ["data.raw.train={tsv: x, columns: [2, 3]}"])
    raw = parse_value(dump(config))["data"]["raw"]  # type: ignore[index, call-overload]
    assert raw["train"] == [{"tsv": "x", "columns": [2, 3]}]
    assert raw["valid"] == [{"source": "valid.en", "target": "valid.de"}]
    assert SplitConfig.model_validate(raw["train"][0]) == config.data.raw.train[0]


def test_paths_of_every_form_are_found_next_to_the_file(
    write: WriteFile, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = write("sub/x.tsv", "")
    write("sub/set/train.source", "")
    file = write(
        "sub/child.yaml",
        "extends: ../small.yaml\ndata: {raw: {train: [{tsv: [x.tsv]}, {folder: set}]}}\n",
    )
    whole = write("sub/whole.yaml", "extends: ../small.yaml\ndata: {raw: set}\n")
    monkeypatch.chdir(write("elsewhere/here", "").parent)
    table, folder = load_experiment(file).data.raw.train
    assert isinstance(table.tsv, list) and Path(table.tsv[0]).samefile(found)
    for name in (folder.folder, load_experiment(whole).data.raw.folder):
        assert name is not None and Path(name).samefile(found.parent / "set")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.source", "train.target.gz", "val.source", "val.target"), (1, 1, 0)),
        (("train.en.zst", "train.de.zst", "dev.en", "dev.de", "test.en", "test.de"), (1, 1, 1)),
        (("train.source", "train.target", "valid.de", "valid.en"), (1, 1, 0)),
    ],
)
def test_a_folder_has_its_splits_by_name(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[int, ...]
) -> None:
    touch(tmp_path, *names)
    raw = RawConfig(folder=str(tmp_path))
    found = [raw_texts(raw, split, EN_DE) for split in ("train", "valid", "test")]
    assert tuple(map(len, found)) == splits
    for text in (text for texts in found for text in texts):
        assert Path(text.source).exists() and Path(text.target).exists()
        assert Path(text.source).name.split(".")[1] in ("source", "en")


def test_given_splits_win_over_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train.en", "train.de", "test.en", "test.de")
    files = {"source": "a", "target": "b"}
    raw = RawConfig.model_validate({"folder": str(tmp_path), "test": files})
    assert raw_texts(raw, "test", EN_DE)[0].source == "a"
    assert raw_texts(raw, "train", EN_DE)[0].source == str(tmp_path / "train.en")
    assert raw_texts(raw, "pairs", EN_DE) == []


COMMAND = "mtdata get -l deu-eng --train A-x-1-deu-eng --merge -o <out-dir>\nmtdata version 0.5.0\n"


def mtdata(folder: Path, *names: str, command: str = COMMAND) -> Path:
    touch(folder, *names)
    (folder / SIGNATURE).write_text(command)
    return folder / SIGNATURE


MERGED = ("train.deu", "train.eng", "dev.deu", "dev.eng", "test1.deu", "test1.eng", "test2.deu",
          "test2.eng", "train.meta.jsonl.gz")  # fmt: skip
PARTS = tuple(
    f"train-parts/{name}"
    for name in ("A-x-1-deu-eng.deu.gz", "A-x-1-deu-eng.eng.gz", "A-x-1-deu-eng.meta.jsonl.gz",
                 ".valid.A-x-1-deu-eng", "B-y-7.1-eng-deu_AT.deu_AT", "B-y-7.1-eng-deu_AT.eng")
)  # fmt: skip


@pytest.mark.parametrize("name", [lambda file: file, lambda file: file.parent])
def test_the_output_of_mtdata(tmp_path: Path, name: Callable[[Path], Path]) -> None:
    raw = RawConfig.model_validate({"folder": str(name(mtdata(tmp_path, *MERGED)))})
    for split, expected in (("train", ["train"]), ("valid", ["dev"]), ("test", ["test1", "test2"])):
        texts = raw_texts(raw, split, EN_DE)
        assert [(text.source, text.target) for text in texts] == [
            (str(tmp_path / f"{stem}.eng"), str(tmp_path / f"{stem}.deu")) for stem in expected
        ]
    spanish = raw_texts(raw, "train", ("de", "es"))  # not by its code, but the other side by its
    assert [(text.source, text.target) for text in spanish] == [
        (str(tmp_path / "train.deu"), str(tmp_path / "train.eng"))
    ]


def test_the_parts_of_mtdata_that_are_not_merged(tmp_path: Path) -> None:
    mtdata(tmp_path, *PARTS)
    texts = raw_texts(RawConfig(folder=str(tmp_path)), "train", EN_DE)
    assert [Path(text.source).name for text in texts] == [
        "A-x-1-deu-eng.eng.gz", "B-y-7.1-eng-deu_AT.eng"
    ]  # fmt: skip
    assert [Path(text.target).name for text in texts] == [
        "A-x-1-deu-eng.deu.gz", "B-y-7.1-eng-deu_AT.deu_AT"
    ]  # fmt: skip


def test_a_signature_without_text_says_how_to_make_it(tmp_path: Path) -> None:
    file = mtdata(tmp_path)
    raw = RawConfig(folder=str(file))
    with pytest.raises(
        UserError, match=rf"data\.raw\.train: .*`bash prepare_data/mtdata.sh {file} "
    ):
        raw_texts(raw, "train", EN_DE)
    assert signature_command(file) == [
        "mtdata", "get", "-l", "deu-eng", "--train", "A-x-1-deu-eng", "--merge", "-o", "<out-dir>"
    ]  # fmt: skip
    mtdata(tmp_path, "train.jpn", "train.kor", command=COMMAND.replace("deu-eng", "jpn-kor"))
    with pytest.raises(UserError, match=r"which of mtdata's languages is en; say it, such as keys"):
        raw_texts(raw, "train", EN_DE)
    entry = {"folder": str(file), "keys": ["kor", "jpn"]}
    assert [text.source for text in named(entry)] == [str(tmp_path / "train.kor")]


def test_a_folder_without_text(tmp_path: Path) -> None:
    raw = RawConfig(folder=str(tmp_path))
    with pytest.raises(
        UserError, match=r"data\.raw\.train: .* has no train.source and train.target, or"
    ):
        raw_texts(raw, "train", EN_DE)
    assert raw_texts(raw, "valid", EN_DE) == raw_texts(raw, "test", EN_DE) == []
    with pytest.raises(UserError, match=r"data\.raw\.valid: .* has no val\.en and val\.de \(also"):
        named({"folder": str(tmp_path), "keys": ["en", "de"]}, "valid")
    with pytest.raises(UserError, match=r"data\.raw\.test: .*nowhere: no such folder"):
        named({"folder": str(tmp_path / "nowhere")}, "test")
    elsewhere = raw_texts(raw, "train", EN_DE, must_exist=False)
    assert [text.source for text in elsewhere] == [str(tmp_path / "train.source")]


def test_check_looks_into_folders(experiment: Path, tmp_path: Path) -> None:
    found = unmet(load_experiment(experiment, [f"data.raw={tmp_path}/nowhere"])).errors
    assert [line for line in found if "nowhere: no such folder" in line]
    touch(tmp_path / "set", "train.source", "train.target")
    missing = unmet(load_experiment(experiment, [f"data.raw={tmp_path}/set"])).errors
    assert any(
        line.startswith("data.raw.valid: missing: name the validation text") for line in missing
    )
    touch(tmp_path / "set", "val.source", "val.target")
    assert unmet(load_experiment(experiment, [f"data.raw={tmp_path}/set"])).errors == []
