"""Mistakes on the command line: one line each, with the nearest option."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ds_seq import cli


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


def test_help_of_generate_has_types_and_defaults_and_needs_no_torch() -> None:
    code = (
        "import sys\nfrom ds_seq.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    text = " ".join(done.stdout.split())
    assert text.endswith("[]")
    assert "--beam INT Beam size; 1 is greedy search (int >= 1, <= 10000; default: 5)" in text
    assert "--sampling {true,false}" in text and "--length-penalty-form {fairseq,gnmt}" in text
