"""Mistakes on the command line: one line each, with the nearest option; numbers have bounds."""

from __future__ import annotations

import importlib

import pytest

from ds_seq import cli
from ds_seq.commands import COMMANDS
from ds_seq.commands.parser import COUNT, Number, command_parser
from ds_seq.errors import UserError
from tests.fresh import words_printed_by

# each checks its value itself, together with what else it depends on
CHECKED = {
    "--local_rank", "--expert-parallel", "--n-best", "--workers", "--buffer-size", "--align-layer",
    "--samples-per-line", "--encoder-layers", "--decoder-layers", "--experts", "--columns",
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate runs/x --beem 3", "no option --beem (did you mean '--beam'?)"),
        ("generate runs/x --n_best 3", "did you mean '--n-best'?"),
        ("generate --lenpen 3", "no option --lenpen; ds_seq's name for it is --length-penalty"),
        ("generate runs/x --num-beams 3", "ds_seq's name for it is --beam"),
        ("generate runs/x --n-best x", "--n-best: should be a whole number, not 'x'"),
        ("generate runs/x --format jsn", "(did you mean 'json"),
        ("generate", "missing: RUN"),
        ("train my.yaml --resum", "did you mean '--resume'?"),
        ("train my.yaml --max-tokens 3", "given without dashes: train.max_tokens=VALUE"),
        ("train my.yaml --train.seed=3", "given without dashes: train.seed=VALUE"),
        ("train my.yaml --update-freq 3", "given without dashes: train.accumulate=VALUE"),
        ("check my.yaml --worldsize 3", "did you mean '--world-size'?"),
        ("prepare my.yaml --forse", "did you mean '--force'?"),
        ("score a b --pairwise", "did you mean '--paired'?"),
        ("export runs/x --out", "--out: needs a value"),
        ("average runs/x --last 3 --best 2 --out x", "cannot be combined"),
        ("export a b --out c", "too many arguments: b"),
        ("train -x a.yaml", "no option -x"),
    ],
)
def test_a_mistake_is_one_line(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and f"see ds-seq {command.split()[0]} --help" in line


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_names_the_nearest_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--helpp"]) == 2
    assert "no option --helpp (did you mean '--help'?)" in capsys.readouterr().err


def test_help_of_every_command_needs_no_torch() -> None:
    code = (
        "import sys\nfrom ds_seq.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'sacrebleu', 'sentencepiece') if m in sys.modules])"
    )
    text = " ".join(words_printed_by(code))
    assert all(f"usage: ds-seq {name}" in text for name in COMMANDS)
    assert text.endswith("[]")


def test_help_of_generate_has_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--beam INT Beam size; 1 is greedy search (int >= 1, <= 10000; default: 5)" in text
    assert "--sampling {true,false}" in text and "--length-penalty-form {fairseq,gnmt}" in text


def test_every_number_of_every_command_has_bounds() -> None:
    types: dict[str, object] = {}
    for command in COMMANDS.values():
        assert command.arguments is not None
        for action in importlib.import_module(command.arguments).build_parser()._actions:
            types.update(dict.fromkeys(action.option_strings[:1], action.type))
    assert {option for option, kind in types.items() if kind in (int, float)} == CHECKED
    assert types["--min-score"] == Number(None, is_whole=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nan", "--ratio nan: must be a finite number"),
        ("inf", "--ratio inf: must be a finite number"),
        ("0.5", "--ratio 0.5: must be at least 1"),
        ("7", "--ratio 7.0: must be at most 5"),
        ("1e308", "must be at most 5"),
    ],
)
def test_a_number_without_sense_is_refused(value: str, message: str) -> None:
    parser = command_parser("x", "")
    parser.add_argument_group("group").add_argument("--ratio", type=Number(1, 5, is_whole=False))
    with pytest.raises(UserError, match=message):
        parser.parse_args(["--ratio", value])
    with pytest.raises(UserError, match=message):
        parser.parse_intermixed_args(["--ratio", value])


def test_a_word_is_no_number() -> None:
    parser = command_parser("x", "")
    parser.add_argument("--last", type=COUNT, default=3)
    assert parser.parse_args([]).last == 3
    assert parser.parse_args(["--last", "2"]).last == 2
    with pytest.raises(UserError, match="--last: should be a whole number, not '1.5'"):
        parser.parse_args(["--last", "1.5"])


def test_a_number_that_no_machine_holds_is_refused() -> None:
    parser = command_parser("x", "")
    parser.add_argument("--last", type=COUNT)
    for digits in ("9" * 20, "9" * 400):
        with pytest.raises(UserError, match=r"--last 9+: must be at most 9\.22337e\+18"):
            parser.parse_args(["--last", digits])
