"""Our numbers are sacreBLEU's own, as its command prints them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds_seq.errors import UserError
from ds_seq.generation.scoring import Scorer, main

HYPOTHESES = ["The cat sat on the mat .", "A small house.", "Yes", "He said: \u201cgo!\u201d"]
REFERENCES = ["The cat sat on a mat.", "One small house.", "Yes", "He said: \u201cgo away!\u201d"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name, lines in (("hyp", HYPOTHESES), ("ref", REFERENCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tmp_path / "hyp", tmp_path / "ref"


def test_scores_and_signatures_are_those_of_the_sacrebleu_command(files: tuple[Path, Path]) -> None:
    hypothesis, reference = map(str, files)
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", reference, "-i", hypothesis]
        + ["-m", "bleu", "chrf", "-w", "6", "--force"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = json.loads(done.stdout)
    found = Scorer()(HYPOTHESES, REFERENCES)
    assert [s.name for s in found] == ["bleu", "chrf"]
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < ours.value < 100
        assert round(ours.value, 6) == theirs["score"]
        assert ours.signature == theirs["signature"]


def test_perfect_and_hopeless() -> None:
    assert [round(s.value, 6) for s in Scorer()(REFERENCES, REFERENCES)] == [100.0, 100.0]
    assert Scorer()(["x"] * 4, REFERENCES)[0].value < 1
    assert Scorer()([""] * 4, REFERENCES)[0].value == 0


def test_chinese_is_split_into_characters() -> None:
    hypothesis, reference = ["今天天气很好。"], ["今天天气非常好。"]
    bleu = Scorer("zh")(hypothesis, reference)[0]
    assert "tok:zh" in bleu.signature
    assert bleu.value > 10 > Scorer()(hypothesis, reference)[0].value


def test_command_prints_signatures(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(path) for path in files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[0] for line in lines] == ["BLEU", "chrF2"]
    assert all("|version:" in line for line in lines)


def test_unequal_and_empty_texts_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 translations but 3 reference"):
        Scorer()(HYPOTHESES, REFERENCES[:3])
    with pytest.raises(UserError, match="empty"):
        Scorer()([], [])
