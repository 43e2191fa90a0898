"""Alignments of words through `ds-seq prepare`: dropped pairs, changed words, up-to-date files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from ds_seq.cli import main
from ds_seq.data.alignments import AlignmentReader
from ds_seq.data.shards import ShardReader
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import toy_pairs

PAIRS = 120


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two training texts, the first with alignments and lines that cleaning drops or changes."""
    pairs = toy_pairs(2 * PAIRS)
    first, second = pairs[:PAIRS], pairs[PAIRS:]
    links = [" ".join(f"{n}-{n % len(b.split())}" for n in range(len(a.split()))) for a, b in first]
    first[3] = ("the same", "the same")  # dropped
    first[5] = first[4]  # dropped as a duplicate
    first[7] = ("a\u00a0b c d", "e f g h")  # `data.clean.fold_spaces` changes its words
    links[7] = "0-0 3-3"
    first[9] = ("  the   man ", "der Mann")
    links[9] = "0-0 1-1"
    links[10] = ""
    for name, part in (("a", first), ("b", second), ("v", second[:20])):
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in part)
            (tmp_path / f"{name}.{language}").write_text(text, encoding="utf-8")
    (tmp_path / "a.links").write_text("".join(f"{line}\n" for line in links))
    (tmp_path / "v.links").write_text("0-0\n" * 20)
    entries = {
        name: {
            side: f"{tmp_path}/{name}.{language}"
            for side, language in (("source", "en"), ("target", "de"))
        }
        for name in ("a", "b", "v")
    }
    for name in ("a", "v"):
        entries[name]["alignments"] = f"{tmp_path}/{name}.links"
    data = {
        "source_lang": "en",
        "target_lang": "de",
        "dir": str(tmp_path / "data"),
        "raw": {"train": [entries["a"], entries["b"]], "valid": entries["v"]},
        "clean": {"fold_spaces": True},
        "vocab": {"size": 140},
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "data": data}))
    return path


def spelled(folder: Path, split: str) -> list[set[tuple[str, str]]]:
    """The linked words of each pair of a split, put together from its tokens."""
    vocab = SentencePieceTokenizer.load(folder / "vocab.model")
    shards = ShardReader(folder, split, vocab.fingerprint)
    found = AlignmentReader(folder, split, shards).gather(np.arange(len(shards)))
    pairs = []
    for number, links in enumerate(found):
        sides = [vocab.pieces(ids[:-1].tolist()) for ids in shards[number]]
        words = [_words(pieces) for pieces in sides]
        pairs.append({(words[0][i], words[1][j]) for i, j in links.tolist()})
    return pairs


def _words(pieces: list[str]) -> list[str]:
    """The word of each piece, found by its marks of spaces."""
    starts = [piece.startswith("\u2581") for piece in pieces]
    numbers = np.cumsum(starts).tolist()
    text: dict[int, str] = {}
    for number, piece in zip(numbers, pieces, strict=True):
        text[number] = text.get(number, "") + piece.replace("\u2581", "")
    return [text[number] for number in numbers]


def test_links_follow_their_pairs(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(experiment)]) == 0
    out = capsys.readouterr().out
    assert f"1 pairs are without, whose words changed in cleaning: {tmp_path}/a.links: lin" in out
    folder = tmp_path / "data"
    found = spelled(folder, "train")
    sources, targets = (
        (folder / "clean" / f"train.{language}").read_text(encoding="utf-8").splitlines()
        for language in ("en", "de")
    )
    raw = list(zip(*((tmp_path / f"a.{x}").read_text().splitlines() for x in ("en", "de")),
                   strict=True))  # fmt: skip
    lines = (tmp_path / "a.links").read_text().splitlines()
    kept = [n for n in range(PAIRS) if n not in (3, 5)]
    assert len(found) == len(sources) == 2 * PAIRS - 2
    for row, number in enumerate(kept):
        words = sources[row].split(" "), targets[row].split(" ")
        line = "" if number == 7 else lines[number]
        links = [tuple(map(int, link.split("-"))) for link in line.split()]
        assert found[row] == {(words[0][i], words[1][j]) for i, j in links}, raw[number]
    assert not any(found[len(kept) :]), "the second text has no alignments"
    assert all(len(links) == 1 for links in spelled(folder, "valid"))


def test_what_is_up_to_date_stays_and_the_rest_does_not(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    assert main(["prepare", str(experiment)]) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.align.*")}
    assert len(before) == 6
    assert main(["prepare", str(experiment)]) == 0
    assert "train: alignments are up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.align.*")}
    assert main(["verify-data", str(folder)]) == 0
    (folder / "train.align.bin").write_bytes(b"damaged")
    assert main(["verify-data", str(folder)]) == 2
    assert main(["prepare", str(experiment)]) == 0
    assert main(["verify-data", str(folder)]) == 0
    links = (tmp_path / "a.links").read_text().splitlines()
    (tmp_path / "a.links").write_text("".join(f"{line}\n" for line in ["", *links[1:]]))
    capsys.readouterr()
    assert main(["prepare", str(experiment)]) == 0
    out = capsys.readouterr().out
    assert "train: clean text is up to date" in out and "links between tokens" in out
    assert spelled(folder, "train")[0] == set()
    content = yaml.safe_load(experiment.read_text())
    for part in content["data"]["raw"]["train"]:
        part.pop("alignments", None)
    experiment.write_text(yaml.safe_dump(content))
    assert main(["prepare", str(experiment)]) == 0
    assert not list(folder.rglob("train.align.*")) and not (folder / "clean/train.places").exists()
    assert main(["verify-data", str(folder)]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "a.links: has fewer lines than"),
        (lambda lines: [*lines, "0-0"], "a.links: has more lines than"),
        (lambda lines: [*lines[:6], "0-x", *lines[7:]], "a.links: line 7: '0-x' is no link"),
        (lambda lines: ["0-90"] * len(lines), "a.links: line 1: the links name other words than"),
        (None, "a.links: no such file"),
    ],
)
def test_other_alignments_are_refused_in_one_line(
    experiment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: object,
    message: str,
) -> None:
    path = tmp_path / "a.links"
    lines = path.read_text().splitlines()
    path.unlink()
    if callable(change):
        path.write_text("".join(f"{line}\n" for line in change(lines)))
    content = yaml.safe_load(experiment.read_text())
    content["data"]["raw"]["train"] = content["data"]["raw"]["train"][:1]
    experiment.write_text(yaml.safe_dump(content))
    assert main(["prepare", str(experiment)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]
    assert not list((tmp_path / "data").glob("train.align.*"))


def test_lines_of_links_are_those_of_pairs_also_below_a_header(
    experiment: Path, tmp_path: Path
) -> None:
    rows = zip(
        *((tmp_path / f"a.{x}").read_text(encoding="utf-8").splitlines() for x in ("en", "de")),
        strict=True,
    )
    table = "english\tgerman\n" + "".join("\t".join(row) + "\n" for row in rows)
    (tmp_path / "a.tsv").write_text(table, encoding="utf-8")
    assert main(["prepare", str(experiment)]) == 0
    expected = spelled(tmp_path / "data", "train")
    content = yaml.safe_load(experiment.read_text())
    entries = content["data"]["raw"]["train"]
    links = entries[0]["alignments"]
    entries[0] = {"tsv": f"{tmp_path}/a.tsv", "header": True, "alignments": links}
    content["data"]["dir"] = str(tmp_path / "other")
    experiment.write_text(yaml.safe_dump(content))
    assert main(["prepare", str(experiment)]) == 0
    assert spelled(tmp_path / "other", "train") == expected
