"""The command table, exit codes and `ds-seq check`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ds_seq import __version__, cli
from ds_seq.commands import Command
from ds_seq.config.options import options_table
from ds_seq.errors import UserError

EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiments"
TINY_MOE = str(EXPERIMENTS / "tiny_moe.yaml")

received: list[Sequence[str]] = []


def ok(argv: Sequence[str]) -> int:
    received.append(argv)
    return 7


def bad_input(argv: Sequence[str]) -> int:
    raise UserError("first mistake\nsecond mistake")


def defect(argv: Sequence[str]) -> int:
    raise FileNotFoundError("a defect of the program")


def interrupted(argv: Sequence[str]) -> int:
    raise KeyboardInterrupt


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    received.clear()
    for function in (ok, bad_input, defect, interrupted):
        name = function.__name__
        module = ModuleType(f"{name}_under_test")
        vars(module)["main"] = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, name, Command(module.__name__, "a test"))


@pytest.mark.usefixtures("commands")
def test_a_command_gets_its_arguments_and_gives_the_exit_code() -> None:
    assert cli.main(["ok", "a", "--b"]) == 7
    assert received == [["a", "--b"]]


@pytest.mark.usefixtures("commands")
def test_a_mistake_of_the_user_is_one_line_each_and_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["bad_input"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == ["ds-seq: error: first mistake", "ds-seq: error: second mistake"]


@pytest.mark.usefixtures("commands")
def test_a_defect_keeps_its_traceback_and_ctrl_c_is_130() -> None:
    with pytest.raises(FileNotFoundError):
        cli.main(["defect"])
    assert cli.main(["interrupted"]) == 130


def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_usage_lists_all_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ds-seq {__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_its_module(name: str) -> None:
    found = importlib.util.find_spec(cli.COMMANDS[name].module)
    assert found is not None and found.origin is not None
    assert "def main(" in Path(found.origin).read_text(encoding="utf-8")


def test_check_prints_experiment_dictionary_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", TINY_MOE, "train.clip_norm=0.25", "--world-size", "4"]) == 0
    printed = capsys.readouterr().out
    experiment, _, rest = printed.partition("# DeepSpeed dictionary")
    assert yaml.safe_load(experiment)["train"]["clip_norm"] == 0.25
    dictionary = rest[rest.index("{") : rest.index("# parameters")]
    assert json.loads(dictionary)["gradient_clipping"] == 0.25
    for row in ("total", "active", "experts", "dense"):
        assert f"\n{row} " in rest


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no experiment file; name one"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ([TINY_MOE, "train.max_tokenz=1"], "did you mean 'max_tokens'?"),
        ([TINY_MOE, "--world-size", "3"], "train.expert_parallel: 2 does not divide"),
        ([TINY_MOE, "--world-size", "0"], "--world-size 0: must be at least 1"),
        ([TINY_MOE, "train.deepspeed=none.json"], "train.deepspeed: none.json cannot be read"),
    ],
)
def test_check_refuses(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *argv]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


def test_check_warns_of_experts_that_nothing_balances(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", TINY_MOE, "criterion.name=cross_entropy"]) == 0
    assert "nothing balances the experts" in capsys.readouterr().out
    for balanced in (
        ["model.moe.router=sigmoid"],
        ["model.moe={router: expert_choice, placement: encoder}"],
    ):
        assert cli.main(["check", TINY_MOE, "criterion.name=cross_entropy", *balanced]) == 0
        assert "nothing balances" not in capsys.readouterr().out


def test_check_of_an_external_router(capsys: pytest.CaptureFixture[str]) -> None:
    outside = "model.moe.router=my.routers:Best"
    assert cli.main(["check", TINY_MOE, "criterion.name=cross_entropy", outside]) == 0
    out = capsys.readouterr().out
    assert "without the router my.routers:Best, whose size is unknown" in out
    assert "nothing balances" not in out


def test_check_of_an_external_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", TINY_MOE, "model.name=my.models:Best"]) == 0
    assert "not known for the external model my.models:Best" in capsys.readouterr().out


def test_check_options_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--options"]) == 0
    assert capsys.readouterr().out == options_table()


def test_check_imports_neither_torch_nor_deepspeed() -> None:
    # with shards in the folder, it would compare them with the experiment
    code = (
        "import sys; from ds_seq.cli import main; "
        f"code = main(['check', {TINY_MOE!r}, 'data.dir=nowhere']); "
        "print([name for name in ('torch', 'deepspeed', 'numpy') if name in sys.modules]); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
