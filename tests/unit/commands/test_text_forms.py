"""`ds-seq prepare`, `check` and references with text in the forms in which people have it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.cli import main
from ds_seq.config.load import load_experiment
from ds_seq.data.expected import expected_by_experiment, raw_files
from ds_seq.data.manifest import Manifest
from ds_seq.data.origin import check_origin
from ds_seq.errors import UserError
from ds_seq.tasks.translation import read_raw
from tests.data.toy import write_toy

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_toy(tmp_path / "raw", 60, 10)
    return tmp_path / "raw"


def lines(raw: Path, split: str) -> list[tuple[str, str]]:
    sides = (
        (raw / f"{split}.{code}").read_text(encoding="utf-8").split("\n") for code in ("en", "de")
    )
    return list(zip(*sides, strict=True))[:-1]


def experiment(folder: Path, **raw: Any) -> Path:
    data = {"source_lang": "en", "target_lang": "de", "dir": str(folder / "data"), "raw": raw}
    folder.mkdir(exist_ok=True)
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "data": {**data, "vocab": {"size": 90}}}))
    return path


def two_files(raw: Path, split: str) -> dict[str, str]:
    return {"source": str(raw / f"{split}.en"), "target": str(raw / f"{split}.de")}


def in_other_forms(raw: Path, folder: Path) -> Path:
    """Write an experiment of the same text: tables, JSON, SGML."""
    rows = [f"{target}\t0.5\t{source}" for source, target in lines(raw, "train")]
    for number, part in enumerate((rows[:20], rows[20:])):
        text = "de\tscore\ten\r\n" + "".join(f"{row}\r\n" for row in part)
        (raw / f"{number}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    with open(raw / "valid.jsonl", "w") as file:
        for source, target in lines(raw, "valid"):
            file.write(json.dumps({"text": {"en": source, "de": target}}) + "\n")
    for side, kind in enumerate(("src.en", "ref.de")):
        segments = [f'<seg id="1">{pair[side]}</seg>\n' for pair in lines(raw, "test")]
        (raw / f"test-{kind}.sgm").write_text(f"<doc>\n{''.join(segments)}</doc>\n")
    tables = [str(raw / "0.tsv.gz"), str(raw / "1.tsv.gz")]
    return experiment(
        folder,
        train={"tsv": tables, "columns": [3, 1], "header": True},
        valid={"jsonl": str(raw / "valid.jsonl"), "keys": ["text.en", "text.de"]},
        test={"source": str(raw / "test-src.en.sgm"), "target": str(raw / "test-ref.de.sgm")},
    )


def test_the_same_text_in_any_form_gives_the_same_shards(raw: Path, tmp_path: Path) -> None:
    plain = experiment(tmp_path / "a", **{s: two_files(raw, s) for s in ("train", "valid", "test")})
    other = in_other_forms(raw, tmp_path / "b")
    for path in (plain, other):
        assert main(["check", str(path)]) == 0
        assert main(["prepare", str(path)]) == 0
    folder = tmp_path / "a/data"
    files = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".lengths")]
    assert len(files) == 3 * 3
    for name in (*files, "vocab.model"):
        assert (tmp_path / "a/data" / name).read_bytes() == (
            tmp_path / "b/data" / name
        ).read_bytes()
    data = load_experiment(other).data
    for split in ("valid", "test"):
        references = read_raw(split, raw_files(data, split))
        assert list(zip(*references, strict=True)) == lines(raw, split)


def test_other_columns_are_other_text(raw: Path, tmp_path: Path, capsys: Capture) -> None:
    path = in_other_forms(raw, tmp_path / "b")
    assert main(["prepare", str(path)]) == 0
    capsys.readouterr()
    assert main(["prepare", str(path)]) == 0
    assert "train: clean text is up to date" in capsys.readouterr().out
    folder = tmp_path / "b/data"
    manifest = Manifest.read(folder / "train.manifest.json")
    swapped = load_experiment(path, ["data.raw.train.columns=[1, 3]"]).data
    with pytest.raises(UserError) as refused:
        check_origin(manifest, folder, "train", expected_by_experiment(swapped, "train"))
    first = str(refused.value).splitlines()[0]
    assert (
        "names column 1 after a header of" in first and "made from column 3 after a header" in first
    )
    assert main(["prepare", str(path), "data.raw.train.columns=[1, 3]"]) == 0
    assert "train: kept 60 of 60 pairs" in capsys.readouterr().out
    clean = (folder / "clean/train.en").read_text(encoding="utf-8").splitlines()
    assert clean == [target for _, target in lines(raw, "train")]


@pytest.mark.parametrize(
    ("choice", "kept", "reference"),
    [("null", 59, None), ("drop", 59, 9), ("replace", 60, 10), ("stop", None, None)],
)
def test_text_that_is_not_utf8(
    choice: str, kept: int | None, reference: int | None, raw: Path, tmp_path: Path, capsys: Capture
) -> None:
    for split in ("train", "valid"):
        content = (raw / f"{split}.en").read_bytes().split(b"\n")
        content[3] = b"\xff" + content[3]
        (raw / f"{split}.en").write_bytes(b"\n".join(content))
    path = experiment(tmp_path / "a", train=two_files(raw, "train"), valid=two_files(raw, "test"))
    code = main(["prepare", str(path), f"data.raw.train={{{entry(raw, 'train', choice)}}}"])
    captured = capsys.readouterr()
    if kept is None:
        (line,) = captured.err.splitlines()
        assert code == 2 and "train.en: line 4: invalid UTF-8 at byte 1 of the line" in line
    else:
        assert code == 0 and f"train: kept {kept} of 60 pairs" in captured.out
        assert ("1  invalid_utf8" in captured.out) == (kept == 59)
    data = load_experiment(path, [f"data.raw.valid={{{entry(raw, 'valid', choice)}}}"]).data
    if reference is None:
        with pytest.raises(UserError, match=r"valid\.en: line 4: invalid UTF-8"):
            read_raw("valid", raw_files(data, "valid"))
    else:
        assert len(read_raw("valid", raw_files(data, "valid")).target) == reference
        assert "valid.en and " in (found := capsys.readouterr().err) and "line(s) 4" in found


def entry(raw: Path, split: str, choice: str) -> str:
    return f"source: {raw}/{split}.en, target: {raw}/{split}.de, invalid_utf8: {choice}"


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("{tsv: 0.tsv.gz, columns: [1, 4]}", "0.tsv.gz: line 2 has 3 column(s), but column 4"),
        ("{tsv: cut.tsv.gz}", "cut.tsv.gz: cannot be decompressed ("),
        ("{tsv: none.tsv}", "none.tsv: no such file"),
        ("{jsonl: valid.jsonl}", "valid.jsonl: line 1 has no key en; its keys are 'text'"),
        ("{source: 0.tsv.gz, target: train.de}", "a table of 3 columns; data.raw takes {tsv: "),
        ("{source: train.en, target: valid.de}", "train.en has 60, valid.de has 10; line n"),
        ("{folder: nowhere}", "data.raw.train: nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(
    train: str, words: str, raw: Path, tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    path = in_other_forms(raw, tmp_path / "b")
    (raw / "cut.tsv.gz").write_bytes((raw / "0.tsv.gz").read_bytes()[:-20])
    monkeypatch.chdir(raw)
    assert main(["prepare", str(path), f"data.raw.train={train}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
