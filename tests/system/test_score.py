"""``ds-seq score`` against the command of sacreBLEU, on the same files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.toy import write_toy
from tests.system.commands import ds_seq, run
from tests.system.forked import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two references and two systems of 80 lines: copies with words left out, ever more of them."""
    folder = tmp_path_factory.mktemp("score")
    write_toy(folder, train=1, held_out=80)
    lines = (folder / "test.de").read_text(encoding="utf-8").splitlines()
    for name, every in (("ref", 10**6), ("ref2", 7), ("a", 5), ("b", 3)):
        kept = [
            " ".join(word for place, word in enumerate(line.split()) if (place + row) % every)
            for row, line in enumerate(lines, 1)
        ]
        (folder / name).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return folder


def sacrebleu(folder: Path, references: str, systems: str, *options: str) -> str:
    paths = [[folder / name for name in names.split()] for names in (references, systems)]
    command = [sys.executable, "-m", "sacrebleu", *paths[0], "-i", *paths[1]]
    return run([*command, "--force", *options], timeout=60, environ={"NO_COLOR": "1"}).check().out


def ours(folder: Path, references: str, systems: str, *options: str) -> list[dict[str, Any]]:
    paths = [[folder / name for name in names.split()] for names in (references, systems)]
    words = ds_seq("score", *paths[0], "--systems", *paths[1], "--json", *options)
    systems_found = json.loads(run(words, timeout=60).check().out)["systems"]
    assert [system["system"] for system in systems_found] == list(map(str, paths[1]))
    return [system["scores"] for system in systems_found]


@pytest.mark.parametrize("references", ["ref", "ref ref2"])
def test_scores_signatures_and_confidence(folder: Path, references: str) -> None:
    options = ["--metrics", "bleu", "chrf", "ter", "--confidence"]
    (found,) = ours(folder, references, "a", *options, "--samples", "200")
    text = sacrebleu(folder, references, "a", *options, "--confidence-n", "200", "-w", "8")
    expected = json.loads(text)
    assert len(found) == len(expected) == 3
    for score, theirs in zip(found.values(), expected, strict=True):
        assert 0 < score["value"] < 100
        assert (score["name"], score["signature"]) == (theirs["name"], theirs["signature"])
        assert round(score["value"], 8) == theirs["score"]
        assert round(score["mean"], 8) == theirs["confidence_mean"]
        assert round(score["ci"], 8) == theirs["confidence_var"]


ROW = re.compile(r"(\d+\.\d{6})(?: \((\S+) ± (\S+)\))?(?: \(p = (\S+)\))?")


def number(text: str) -> float | None:
    return float(text) if text else None


@pytest.mark.parametrize(("paired", "short"), [("bootstrap", "bs"), ("randomization", "ar")])
def test_paired_tests(folder: Path, paired: str, short: str) -> None:
    metrics = ["--metrics", "bleu", "chrf"]
    found = ours(folder, "ref", "ref2 a", *metrics, "--paired", paired, "--samples", "300")
    # of its formats only this one has a system in each line; JSON fails after a bootstrap
    options = [f"--paired-{short}", f"--paired-{short}-n", "300", "-f", "latex", "-w", "6"]
    text = sacrebleu(folder, "ref", "ref2 a", *metrics, *options)
    rows = [tuple(map(number, row)) for row in ROW.findall(text)]
    assert len(rows) == 4
    scores = [system[name] for system in found for name in ("bleu", "chrf")]
    for score, (value, mean, ci, p_value) in zip(scores, rows, strict=True):
        assert (score["mean"] is None) == (mean is None) == (paired == "randomization")
        expected = {"value": value, "mean": mean, "ci": ci, "p_value": p_value}
        assert {key: score[key] for key in expected} == pytest.approx(expected, abs=6e-5)
        assert re.search(rf"- {score['name']} +{re.escape(score['signature'])}$", text, re.M)
    assert scores[0]["p_value"] is None and 0 < scores[2]["p_value"] < 1


def test_positional_form_prints_the_lines_of_sacrebleu(folder: Path) -> None:
    words = ds_seq("score", folder / "b", folder / "ref", "--metrics", "bleu", "chrf++", "ter")
    found = run(words, timeout=60).check()
    options = ["-m", "bleu", "chrf", "ter", "-f", "text", "-w", "2", "--chrf-word-order", "2"]
    expected = sacrebleu(folder, "ref", "b", *options).splitlines()
    assert found.out.splitlines() == [line.strip() for line in expected]
    assert not found.err


def test_a_mistake_is_one_line_and_exit_code_2(folder: Path) -> None:
    (folder / "short").write_text("x\n")
    finished = command("score", folder / "short", folder / "ref")[0]
    assert finished.code == 2
    assert "short has 1 lines but" in finished.err and len(finished.err.splitlines()) == 1
    assert not finished.out
