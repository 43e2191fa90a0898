"""The same bytes and the same report in every way: blocks, kills, corpora; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_seq.config.clean import CleanConfig
from ds_seq.data import clean as clean_module
from ds_seq.data.clean import CleanReport, clean_corpora
from ds_seq.data.cleaning.build import build_corpus
from ds_seq.errors import UserError
from ds_seq.text.forms import Table
from ds_seq.text.lines import PairPath
from tests.unit.data.cleaning.made import EVERYTHING, corpus_in, make_text
from tests.unit.test_layering import PACKAGE


def _output(folder: Path, name: str = "out") -> PairPath:
    return PairPath(folder / f"{name}.en", folder / f"{name}.de")


def _result(output: PairPath, report: CleanReport) -> tuple[bytes, bytes, str]:
    return output.source.read_bytes(), output.target.read_bytes(), report.to_json()


class _Killed(Exception):
    pass


@pytest.mark.parametrize("seed", range(3))
def test_interruptions_and_blocks_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Killed after every block, with a torn end of both files, and still the same."""
    make_text(tmp_path, 400, seed)
    corpus = corpus_in(tmp_path, **EVERYTHING)
    whole = _output(tmp_path, "whole")
    expected = _result(whole, clean_corpora([corpus], whole))
    output = _output(tmp_path)
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 37)
    calls = 0

    def die(amount: int) -> None:
        nonlocal calls
        calls += 1
        raise _Killed

    for _ in range(100):
        try:
            report = clean_corpora([corpus], output, progress=die if calls < 8 else lambda n: None)
            break
        except _Killed:
            assert not output.source.exists() and not output.target.exists()
            for path in (tmp_path / "out.en.partial").glob("*.data"):
                path.write_bytes(path.read_bytes() + b"torn")
            for path in (tmp_path / "out.en.partial").glob("*.index"):
                path.write_bytes(path.read_bytes() + b'[[3, "to')
    assert calls == 8 and _result(output, report) == expected
    assert not (tmp_path / "out.en.partial").exists()


@pytest.mark.parametrize("seed", range(4))
def test_the_sum_is_always_right(tmp_path: Path, seed: int) -> None:
    make_text(tmp_path, 300, seed)
    report = clean_corpora([corpus_in(tmp_path, **EVERYTHING)], output := _output(tmp_path))
    lines = output.source.read_bytes().count(b"\n")
    assert lines == output.target.read_bytes().count(b"\n") == report.kept
    assert report.total == (tmp_path / "text.en").read_bytes().count(b"\n")
    assert report.total == lines + sum(report.dropped.values())
    (corpus,) = report.corpora
    used = {reason for reason, number in corpus.dropped.items() if number}
    assert len(used) > 12, f"the text is to try all filters, not only {used}"
    for reason, number in corpus.dropped.items():
        examples = corpus.examples.get(reason, [])
        assert len(examples) == min(number, 20), reason
        assert len({example.line for example in examples}) == len(examples)


def test_defaults_are_those_of_before(tmp_path: Path) -> None:
    """What an experiment that names no new filter has got from earlier versions."""
    from tests.values import clean_options

    make_text(tmp_path, 400)
    sides = [(tmp_path / f"text.{name}").read_bytes().split(b"\n")[:-1] for name in ("en", "de")]
    seen: dict[tuple[str, str], None] = {}
    for raw in zip(*sides, strict=True):
        try:
            pair = tuple(" ".join(line.decode().split()) for line in raw)
        except UnicodeDecodeError:
            continue
        if clean_module.reason_to_drop(pair[0], pair[1], clean_options()) is None:
            seen.setdefault((pair[0], pair[1]))
    report = clean_corpora([corpus_in(tmp_path)], output := _output(tmp_path))
    assert output.source.read_text() == "".join(f"{pair[0]}\n" for pair in seen)
    assert output.target.read_text() == "".join(f"{pair[1]}\n" for pair in seen)
    assert list(report.dropped) == [
        "invalid_utf8", "empty", "too_short", "too_long", "ratio", "identical", "duplicate",
    ]  # fmt: skip


def test_corpora_compete_for_equal_pairs_and_count_by_themselves(tmp_path: Path) -> None:
    for name, scores in (("a", "0.5\n0.9\n"), ("b", "0.7\n0.9\n")):
        (tmp_path / f"{name}.en").write_text("one\ntwo\n")
        (tmp_path / f"{name}.de").write_text("eins\nzwei\n")
        (tmp_path / f"{name}.score").write_text(scores)
    base = CleanConfig()
    corpora = [
        build_corpus(
            name,
            [PairPath(tmp_path / f"{name}.en", tmp_path / f"{name}.de")],
            ("en", "de"),
            base,
            {"score_files": [str(tmp_path / f"{name}.score")]},
        )
        for name in ("a", "b")
    ]
    report = clean_corpora(corpora, output := _output(tmp_path))
    assert output.source.read_text() == "two\none\n", "the best score, and of equal ones the first"
    assert [(each.name, each.kept, each.dropped["duplicate"]) for each in report.corpora] == [
        ("a", 1, 1), ("b", 1, 1),
    ]  # fmt: skip


def test_a_corpus_has_options_of_its_own(tmp_path: Path) -> None:
    make_text(tmp_path, 200)
    strict = corpus_in(tmp_path, "strict", max_words=2, drop_duplicates=False)
    loose = corpus_in(tmp_path, "loose")
    alone = clean_corpora([strict], _output(tmp_path, "alone"))
    report = clean_corpora([strict, loose], _output(tmp_path))
    assert report.corpora[0].kept == alone.kept < report.corpora[1].kept
    source = (tmp_path / "out.en").read_text().splitlines()
    assert source[: alone.kept] == (tmp_path / "alone.en").read_text().splitlines()


def test_the_report_in_text_and_json(tmp_path: Path) -> None:
    make_text(tmp_path, 300)
    report = clean_corpora([corpus_in(tmp_path, **EVERYTHING)], _output(tmp_path))
    report.write(tmp_path / "report" / "train.json")
    content = json.loads((tmp_path / "report" / "train.json").read_text(encoding="utf-8"))
    (corpus,) = content["corpora"]
    assert content["total"] == content["kept"] + sum(content["dropped"].values())
    assert corpus["dropped"] == report.corpora[0].dropped
    lines = (tmp_path / "text.en").read_text(encoding="utf-8").split("\n")
    for example in corpus["examples"]["number_mismatch"]:
        assert example["file"] == str(tmp_path / "text.en")
        assert example["source"].split()[-1] in lines[example["line"] - 1].replace("&amp;", "&")
    text = (tmp_path / "report" / "train.txt").read_text(encoding="utf-8")
    assert f"dropped {report.dropped['number_mismatch']:>12,}  number_mismatch" in text
    assert all(example["target"] in text for example in corpus["examples"]["ratio"])


@pytest.mark.parametrize(
    ("keys", "scores", "message"),
    [
        ({}, "1\n2\n", r"text.score: has 2 lines, but .*text.en and .*text.de have 3 pairs"),
        ({}, "1\n2\n3\n4\n5\n", r"text.score: has 5 lines, but .* have 3 pairs; line n must be"),
        ({}, "1\nnan\n3\n", r"text.score: line 2: 'nan' is no score"),
        ({}, "1\n2\n0.5 bad\n", r"text.score: line 3: '0.5 bad' is no score.*or give score_column"),
        ({"score_column": 2}, "a\t1\nb\nc\t3\n", r"text.score: line 2 has no column 2"),
        ({"score_column": 2}, "a\t1\nb\tx\nc\t3\n", r"text.score: line 2: 'x' is no score"),
        ({}, None, r"text.score: no such file"),
    ],
)
def test_scores_that_do_not_fit(
    tmp_path: Path, keys: dict[str, Any], scores: str | None, message: str
) -> None:
    (tmp_path / "text.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "text.de").write_text("eins\nzwei\ndrei\n")
    if scores is not None:
        (tmp_path / "text.score").write_text(scores)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        clean_corpora([corpus_in(tmp_path, min_score=0.5, **keys)], _output(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_scores_in_a_column_and_a_threshold(tmp_path: Path) -> None:
    (tmp_path / "text.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "text.de").write_text("eins\nzwei\ndrei\n")
    (tmp_path / "text.score").write_text("x\t0.4\tz\r\nx\t0.5\tz\r\nx\t1e3\tz\r\n")
    corpus = corpus_in(tmp_path, min_score=0.5, score_column=2)
    report = clean_corpora([corpus], output := _output(tmp_path))
    assert output.source.read_text() == "two\nthree\n"
    assert report.dropped["score"] == 1


@pytest.mark.parametrize("header", [False, True])
def test_scores_in_a_column_of_the_text_itself(tmp_path: Path, header: bool) -> None:
    path = tmp_path / "x.tsv"
    rows = ["one\t0.4\teins", "two\t0.5\tzwei", "three\t0.6\tdrei"]
    head = ["en\tscore\tde"] if header else []
    path.write_text("".join(f"{row}\n" for row in (*head, *rows)))
    text = PairPath(path, path, Table((1, 3), header))
    scores = {"score_files": [str(path)], "score_column": 2, "min_score": 0.5}
    corpus = build_corpus("x", [text], ("en", "de"), CleanConfig(**scores))
    output = _output(tmp_path)
    report = clean_corpora([corpus], output)
    assert report.dropped["score"] == 1 and output.source.read_text() == "two\nthree\n"
    path.write_text(path.read_text() + "four\tbad\tvier\n")
    line = 5 if header else 4
    with pytest.raises(UserError, match=rf"x\.tsv: line {line}: 'bad' is no score"):
        clean_corpora([corpus], output)


def test_a_threshold_needs_scores_of_every_file(tmp_path: Path) -> None:
    make_text(tmp_path, 5)
    inputs = [PairPath(tmp_path / "text.en", tmp_path / "text.de")] * 2
    changes = {"score_files": [str(tmp_path / "text.score")], "min_score": 0.1}
    corpus = build_corpus("news", inputs, ("en", "de"), CleanConfig(), changes)
    with pytest.raises(UserError, match=r"1 file\(s\) for the 2 pair\(s\) of files of the corpus"):
        clean_corpora([corpus], _output(tmp_path))
    with pytest.raises(UserError, match=r"the corpus news: clean.min_score: needs a score"):
        build_corpus("news", inputs, ("en", "de"), CleanConfig(), {"min_score": 0.1})
    with pytest.raises(UserError, match=r"corpus news: clean.max_rati: .*did you mean 'max_ratio'"):
        build_corpus("news", inputs, ("en", "de"), CleanConfig(), {"max_rati": 0.1})


def test_other_text_or_options_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_text(tmp_path, 100)
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 10)
    output = _output(tmp_path)

    def die(amount: int) -> None:
        raise _Killed

    with pytest.raises(_Killed):
        clean_corpora([corpus_in(tmp_path)], output, progress=die)
    report = clean_corpora([corpus_in(tmp_path, max_words=3)], output)
    assert max(len(line.split()) for line in output.source.read_text().splitlines()) == 3
    assert report.total == (tmp_path / "text.en").read_bytes().count(b"\n")


def test_a_change_of_a_finished_block_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_text(tmp_path, 100)
    monkeypatch.setattr(clean_module, "BLOCK_LINES", 10)
    output = _output(tmp_path)
    calls = 0

    def die(amount: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise _Killed

    with pytest.raises(_Killed):
        clean_corpora([corpus_in(tmp_path)], output, progress=die)
    (data,) = (tmp_path / "out.en.partial").glob("*.data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    report = clean_corpora([corpus_in(tmp_path)], output)
    whole = _output(tmp_path, "whole")
    assert _result(output, report) == _result(whole, clean_corpora([corpus_in(tmp_path)], whole))


def test_the_folder_of_parts_imports_no_torch() -> None:
    assert not [
        path
        for path in (PACKAGE / "data" / "cleaning").glob("*.py")
        if "import torch" in path.read_text(encoding="utf-8")
    ]
