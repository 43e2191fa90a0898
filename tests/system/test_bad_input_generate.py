"""`ds-seq generate` with what it cannot use: one line, exit code 2, nothing written."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from ds_seq.models import build_model
from ds_seq.runs.export import export
from ds_seq.text.sentencepiece import SentencePieceTokenizer
from tests.data.toy import write_toy
from tests.data.vocabulary import train_vocab
from tests.system.commands import Finished, ds_seq, run
from tests.system.forked import generate
from tests.system.runs import snapshot
from tests.unit.runs.made import experiment, write_run


class Place(NamedTuple):
    """A read-only folder with all inputs of the cases."""

    folder: Path

    def path(self, word: str) -> str:
        """An argument; ``@name`` is a file of the folder."""
        return word.replace("@", f"{self.folder}/")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Texts good and bad, and runs good and bad."""
    folder = tmp_path_factory.mktemp("place")
    write_toy(folder, 200, 5)
    sides = [folder / "train.en", folder / "train.de"]
    vocab = train_vocab(sides, folder / "vocab", 130)
    _write_texts(folder)
    config = experiment({"moe": {"num_experts": 4, "every": 2}})
    good = write_run(
        folder / "run", config, vocab, {1: build_model(config.model, len(vocab), 1, 0, seed=1)}
    )
    export(good, folder / "export", "best")
    for name in ("untrained", "no_config", "larger", "damaged"):
        shutil.copytree(good, folder / name)
    shutil.rmtree(folder / "untrained" / "checkpoints")
    (folder / "no_config" / "config.yaml").unlink()
    train_vocab(sides, folder / "larger" / "vocab.model", 140)
    (folder / "damaged" / "vocab.model").write_bytes(vocab.to_bytes()[:500])
    shutil.copytree(folder / "export", folder / "other_words")
    _other_words(folder / "other_words", sides, vocab)
    return Place(folder)


def _other_words(run: Path, sides: list[Path], vocab: SentencePieceTokenizer) -> None:
    """Put a vocabulary in its place that is as large."""
    other = train_vocab([*sides, sides[1]], run / "vocab.model", len(vocab))
    assert len(other) == len(vocab) and other.fingerprint != vocab.fingerprint


def _write_texts(folder: Path) -> None:
    text = (folder / "test.en").read_bytes()
    (folder / "not_utf8").write_bytes(b"the man\n\nthe \xffwoman\n")
    (folder / "shorter").write_bytes(b"".join(text.splitlines(keepends=True)[:-1]))
    (folder / "torn.gz").write_bytes(gzip.compress(text)[:-20])
    (folder / "named_only.gz").write_bytes(text)
    (folder / "empty").write_bytes(b"")
    (folder / "pairs.tsv").write_bytes(b"the man\tder Mann\n")
    (folder / "link.en").symlink_to(folder / "test.en")


def assert_refused(finished: Finished, *expected: str) -> None:
    assert finished.code == 2, finished
    assert finished.out == "" and finished.err.count("\n") == 1, finished
    assert finished.err.startswith("ds-seq: error: ")
    for part in expected:
        assert part in finished.err


GOOD = ("--input", "@test.en")
CASES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "missing run": (["@nowhere", *GOOD], ["@nowhere: no such run folder"]),
    "folder that is no run": (["@no_config", *GOOD], ["@no_config", "config.yaml is missing"]),
    "file that is no export": (["@test.en", *GOOD], ["@test.en: neither a run folder nor"]),
    "no checkpoint": (["@untrained", *GOOD], ["@untrained: has no finished checkpoint"]),
    "unknown checkpoint": (
        ["@run", *GOOD, "--checkpoint", "update_7"],
        ["@run: no checkpoint 'update_7'", "update_00000001"],
    ),
    "checkpoint of an export": (
        ["@export", *GOOD, "--checkpoint", "update_00000001"],
        ["@export: is an export", "no checkpoint 'update_00000001'"],
    ),
    "larger vocabulary": (["@larger", *GOOD], ["@larger/checkpoints", "another model"]),
    "damaged vocabulary": (["@damaged", *GOOD], ["@damaged/vocab.model"]),
    "vocabulary as large": (
        ["@other_words", *GOOD],
        ["@other_words/vocab.model: is vocabulary", "restore that vocabulary"],
    ),
    "missing text": (["@run", "--input", "@nothing"], ["@nothing: no such file"]),
    "folder as a text": (["@run", "--input", "@run"], ["@run: is a folder"]),
    "not UTF-8": (["@run", "--input", "@not_utf8"], ["@not_utf8: line 3: invalid UTF-8"]),
    "torn archive": (["@run", "--input", "@torn.gz"], ["@torn.gz: cannot be decompressed"]),
    "no archive": (["@run", "--input", "@named_only.gz"], ["@named_only.gz: cannot be"]),
    "shorter reference": (
        ["@run", *GOOD, "--reference", "@shorter"],
        ["@test.en has 5 lines but @shorter has 4"],
    ),
    "reference not UTF-8": (
        ["@run", *GOOD, "--reference", "@not_utf8"],
        ["@not_utf8: line 3: invalid UTF-8"],
    ),
    "nothing to score": (
        ["@run", "--input", "@empty", "--reference", "@empty"],
        ["nothing to translate and score"],
    ),
    "output is the input": (["@run", *GOOD, "--output", "@test.en"], ["@test.en: is also the"]),
    "output is linked to the input": (
        ["@run", *GOOD, "--output", "@link.en"],
        ["@link.en: is also the input @test.en"],
    ),
    "output is the reference": (
        ["@run", *GOOD, "--reference", "@test.de", "--output", "@test.de"],
        ["@test.de: is also the input"],
    ),
    "output is a part of the run": (
        ["@run", *GOOD, "--output", "@run/vocab.model"],
        ["@run/vocab.model: belongs to the input"],
    ),
    "table as a text": (["@run", "--input", "@pairs.tsv"], ["@pairs.tsv: looks like a table of 2"]),
    "wrong option": (["@run", *GOOD, "--beam", "none"], ["--beam: should be", "'none'"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(place: Place, tmp_path: Path, case: str) -> None:
    arguments, expected = CASES[case]
    out = tmp_path / "out"
    out.write_text("what was there before\n")
    before = snapshot(place.folder)
    words = [place.path(word) for word in arguments]
    finished = generate("--output", out, *words)[0]
    assert_refused(finished, *map(place.path, expected))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_text() == "what was there before\n"
    assert snapshot(place.folder) == before


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("@folder", "@folder: is a folder"),
        ("@nowhere/out", "@nowhere/out: no such folder"),
        ("@file/out", "@file/out: no such folder"),
        ("/proc/out", "/proc/out"),  # not even the superuser can write there
    ],
)
def test_an_output_that_cannot_be_written(
    place: Place, tmp_path: Path, output: str, expected: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    here = Place(tmp_path)
    words = [place.path(word) for word in ("@run", *GOOD)]
    finished = generate(*words, "--output", here.path(output))[0]
    assert_refused(finished, here.path(expected))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (GOOD + ("--expert-parallel", "3"), "4 experts of a layer cannot be spread over 3 ranks"),
        (("--input", "@not_utf8"), "line 3: invalid UTF-8"),
    ],
)
def test_of_many_processes_one_speaks(
    place: Place, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    words = [place.path(word) for word in ("@run", *arguments)]
    first, *others = generate(*words, "--output", tmp_path / "out", ranks=3)
    assert first.code == 2 and "Traceback" not in first.err
    lines = [line for line in first.err.splitlines() if line.startswith("ds-seq: error: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert [(other.code, other.out + other.err) for other in others] == [(2, "")] * 2
    assert not list(tmp_path.iterdir())


def test_the_program_itself_ends_with_2(place: Place, tmp_path: Path) -> None:
    words = [place.path(word) for word in ("@run", "--input", "@not_utf8", "--output")]
    finished = run(ds_seq("generate", *words, tmp_path / "out"), timeout=60)
    assert_refused(finished, f"{place.folder}/not_utf8: line 3: invalid UTF-8")
    assert not list(tmp_path.iterdir())
