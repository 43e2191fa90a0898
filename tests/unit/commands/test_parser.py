"""Numbers among the options of commands."""

from __future__ import annotations

import argparse
import importlib

import pytest

from ds_seq.commands import COMMANDS
from ds_seq.commands.parser import COUNT, Number, command_parser
from ds_seq.errors import UserError

# each checks its value itself, together with what else it depends on
CHECKED = {
    "--local_rank", "--expert-parallel", "--n-best", "--workers", "--buffer-size", "--align-layer",
    "--samples-per-line", "--encoder-layers", "--decoder-layers", "--world-size",
}  # fmt: skip


def test_every_number_of_every_command_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    types: dict[str, object] = {}

    def note(parser: argparse.ArgumentParser, *arguments: object) -> None:
        for action in parser._actions:
            types.update(dict.fromkeys(action.option_strings[:1], action.type))
        raise InterruptedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", note)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_intermixed_args", note)
    for command in COMMANDS.values():
        main = importlib.import_module(command.module).main
        with pytest.raises(InterruptedError):
            main([])
    assert {option for option, kind in types.items() if kind in (int, float)} == CHECKED
    assert types["--min-score"] == Number(None, is_whole=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nan", "--ratio nan: must be a finite number"),
        ("inf", "--ratio inf: must be a finite number"),
        ("0.5", "--ratio 0.5: must be at least 1"),
        ("7", "--ratio 7.0: must be at most 5"),
    ],
)
def test_a_number_without_sense_is_refused(value: str, message: str) -> None:
    parser = command_parser("x", "")
    parser.add_argument_group("group").add_argument("--ratio", type=Number(1, 5, is_whole=False))
    with pytest.raises(UserError, match=message):
        parser.parse_args(["--ratio", value])
    with pytest.raises(UserError, match=message):
        parser.parse_intermixed_args(["--ratio", value])


def test_a_word_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("x", "")
    parser.add_argument("--last", type=COUNT, default=3)
    assert parser.parse_args([]).last == 3
    assert parser.parse_args(["--last", "2"]).last == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--last", "1.5"])
    assert "--last: should be a whole number, not '1.5'" in capsys.readouterr().err
