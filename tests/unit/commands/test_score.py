"""The command ``ds-seq score``: which texts it takes, what it prints, warns of and refuses."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ds_seq.cli import main as ds_seq
from ds_seq.commands.score import main, suspicions
from ds_seq.errors import UserError

REFERENCE = [
    f"Line {n} has {n * n} words, or {'few' if n % 2 else 'many'} more." for n in range(30)
]
SECOND = [line.replace("words", "tokens") for line in REFERENCE]
GOOD = [line.replace("words", "tokens") if n % 3 else line for n, line in enumerate(REFERENCE)]
BAD = [line.replace("has", "is")[: 99 - 70 * (n % 2)] for n, line in enumerate(REFERENCE)]
BLEU_LINE = "BLEU|nrefs:1|case:mixed|"


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, lines in (("ref", REFERENCE), ("ref2", SECOND), ("good", GOOD), ("bad", BAD)):
        write(name, lines)
    return tmp_path


def write(name: str, lines: Sequence[str]) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(command.split()) == 0
    return capsys.readouterr().out.splitlines()


def as_json(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("\n".join(printed(f"{command} --json", capsys)))
    return found


def test_one_system_prints_a_line_for_each_metric(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("good ref", capsys)
    assert [line.split("|")[0] for line in lines] == ["BLEU", "chrF2"]
    assert all("|version:" in line for line in lines)
    names = "bleu chrf chrf++ ter rouge".split()
    lines = printed(f"good ref --target-lang en --metrics {' '.join(names)}", capsys)
    assert [line.split("|")[0] for line in lines] == (
        "BLEU chrF2 chrF2++ TER ROUGE-1 ROUGE-2 ROUGE-L ROUGE-Lsum".split()
    )


def test_all_ways_to_name_the_same_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = printed("good ref", capsys)
    assert first == printed("good --target-lang de ref", capsys)
    assert first == printed("good --reference ref", capsys)
    assert first == printed("ref --systems good", capsys)
    assert first == printed("--systems good --reference ref", capsys)
    content = io.TextIOWrapper(io.BytesIO(Path("good").read_bytes()))
    monkeypatch.setattr(sys, "stdin", content)
    assert first == printed("- ref", capsys)
    assert first != printed("bad ref", capsys)


def test_several_references_count_together(capsys: pytest.CaptureFixture[str]) -> None:
    alone = as_json("good ref", capsys)
    both = as_json("good --reference ref ref2", capsys)
    assert both == as_json("ref ref2 --systems good", capsys)
    assert both == as_json("ref --systems good --reference ref2", capsys)
    assert (both["references"], both["lines"]) == (["ref", "ref2"], 30)
    alone, both = (found["systems"][0]["scores"]["bleu"] for found in (alone, both))
    assert both["value"] == pytest.approx(100) and alone["value"] < 90
    assert "nrefs:2" in both["signature"]


def test_the_language_reaches_bleu(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tok:13a" in printed("good ref", capsys)[0]
    assert "tok:zh" in printed("good ref --target-lang zh", capsys)[0]


def test_several_systems_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("ref --systems good bad", capsys)
    assert lines[0].split() == ["system", "metric", "score"]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["good", "BLEU"], ["bad", "BLEU"], ["good", "chrF2"], ["bad", "chrF2"]
    ]  # fmt: skip
    assert lines[6].startswith(BLEU_LINE)
    lines = printed("ref --systems good bad ref2 --samples 100 --paired", capsys)
    assert lines[0].split() == "system metric score mean ± 95% CI p-value".split()
    assert lines[1].endswith("baseline")
    assert lines[2].startswith("bad ") and lines[2].endswith("0.0099 *")
    assert "p-value: paired bootstrap against good; * below 0.05" in lines


def test_a_copy_of_the_baseline_is_not_marked(capsys: pytest.CaptureFixture[str]) -> None:
    write("copy", GOOD)
    lines = printed("ref --systems good copy --metrics bleu --paired --samples 9", capsys)
    assert lines[2].startswith("copy ") and lines[2].endswith(" 1.0000")


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--paired randomization --confidence --samples 50 --seed 7"
    found = as_json(f"ref --systems good bad {options}", capsys)
    assert found["test"] == "randomization"
    assert [system["system"] for system in found["systems"]] == ["good", "bad"]
    for system in found["systems"]:
        assert list(system["scores"]) == ["bleu", "chrf"]
        for score in system["scores"].values():
            assert 0 < score["value"] < 100 and 0 < score["mean"] < 100 and score["ci"] > 0
            assert "bs:50|ar:50|seed:7" in score["signature"]
    p_values = [system["scores"]["bleu"]["p_value"] for system in found["systems"]]
    assert p_values == [None, pytest.approx(1 / 51)]


def test_tokenized_bleu_is_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = printed("good ref --tokenized", capsys)
    assert line.startswith("tokenized BLEU (not comparable)|") and "tok:none" in line
    name = "tokenized BLEU (not comparable)"
    for options in ("--systems good", "--systems good bad --paired --samples 5"):
        found = as_json(f"ref {options} --tokenized", capsys)
        for system in found["systems"]:
            assert {key: score["name"] for key, score in system["scores"].items()} == {
                "tokenized_bleu": name
            }
        assert "BLEU" not in json.dumps(found).replace(name, "")
    table = "\n".join(printed("ref --systems good bad --tokenized", capsys))
    assert table.count(name) == 3 and "BLEU" not in table.replace(name, "")


TOKENISED = ["It is , so to say , split .", "Raw text.", "Another one ."]
PIECES = [["▁It ▁is"], ["It i@@ s"], ["It i@@"]]


def test_suspicious_texts() -> None:
    for raw in (GOOD, REFERENCE, ["Mail me@@home, or x@y.z . . ok"], [""] * 3):
        assert not suspicions(raw)
    (warning,) = suspicions(TOKENISED)
    assert "looks tokenized (2 of 3 lines" in warning
    assert not suspicions(TOKENISED, tokenized=True)
    assert not suspicions([*TOKENISED, "More raw text."])
    assert suspicions(["well @-@ known"])
    assert not suspicions(["A ."] * 99 + GOOD * 10) and suspicions(["A ."] * 100 + GOOD * 10)
    for pieces in PIECES:
        for tokenized in (False, True):
            (warning,) = suspicions(pieces, tokenized=tokenized)
            assert "subword marks" in warning
        assert not suspicions(pieces + ["raw"] * 99)


def test_warnings_name_the_file_and_leave_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    write("hyp", ["▁It ▁is."])
    write("tok", ["It is ."])
    assert main(["hyp", "tok"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith(BLEU_LINE) and "warning" not in found.out
    warnings = found.err.splitlines()
    assert [line.split(" (")[0] for line in warnings] == [
        "ds-seq: warning: hyp has subword marks",
        "ds-seq: warning: tok looks tokenized",
    ]
    for silent in ("good ref", "tok tok --tokenized"):
        assert main(silent.split()) == 0 and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("good", "give HYP REF, or"),
        ("good bad ref", "give HYP REF, or"),
        ("good bad --reference ref", "give HYP REF, or"),
        ("--systems good ref", "give HYP REF, or"),
        ("good missing", "missing: no such file"),
        ("short ref", "short has 1 lines but ref has 30"),
        ("good --reference ref short", "short has 1 lines but ref has 30"),
        ("empty ref", "empty has 0 lines but ref has 30"),
        ("good empty", "empty: is empty; there is no text to score"),
        ("bytes ref", "bytes: line 2: invalid UTF-8 at byte 3"),
        ("ref --systems good bad good", "good: is given more than once"),
        ("good --reference ref ref", "ref: is given more than once"),
        ("- -", "only one of the texts can be standard input"),
        ("good ref --paired", "--paired: compares systems"),
        ("good ref --seed 3", "--samples, --seed: need --confidence or --paired"),
        ("good ref --samples 10", "--samples, --seed: need --confidence or --paired"),
        ("good ref --tokenized --metrics chrf", "--tokenized: supports only BLEU"),
        ("good ref --metrics rouge", "--target-lang"),
        ("good ref --no-stemmer", "--no-stemmer: only used by rouge"),
        ("good ref --metrics comet", "comet: needs exactly one reference and the source text"),
        (
            "good --reference ref ref2 --metrics comet --source ref",
            "comet: needs exactly one reference",
        ),
        ("good ref --metrics comet --source short", "short has 1 lines but ref has 30"),
        ("good ref --source bad", "--source: only used by"),
    ],
)
def test_what_is_refused(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("short", ["one"])
    write("empty", [])
    Path("bytes").write_bytes(b"fine\nab\xff\n" + b"x\n" * 28)
    assert ds_seq(["score", *command.split()]) == 2
    found = capsys.readouterr()
    (line,) = found.err.splitlines()
    assert line.startswith("ds-seq: error: ") and message in line
    assert not found.out


@pytest.mark.parametrize("option", ["--seed 0", "--samples 1", "--samples x", "--paired ref"])
def test_numbers_and_names_out_of_range(option: str) -> None:
    """Seed 0 would be no seed at all to a paired test; one sample has no interval."""
    with pytest.raises(UserError, match=f"^{option.split()[0]}[: ]"):
        main([*"ref --systems good bad --confidence".split(), *option.split()])
