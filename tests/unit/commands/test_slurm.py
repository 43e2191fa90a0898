"""`ds-seq slurm`: what it writes, what it refuses, and that nothing reaches the queue unchecked."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ds_seq import cli

Capture = pytest.CaptureFixture[str]

EXPERIMENT = """\
name: my_run
run_dir: run
data: {source_lang: en, target_lang: de, dir: data, raw: {train: {source: a.en, target: a.de}}}
model: {moe: {num_experts: 4}}
train: {expert_parallel: 4, validate_every: null, save_every: 10}
"""


@pytest.fixture(autouse=True)
def _experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.en", "a.de"):
        Path(name).write_text("a\n")
    Path("my.yaml").write_text(EXPERIMENT)


def _settings(script: Path) -> set[str]:
    lines = script.read_text().splitlines()
    return {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}


def test_a_script_for_the_ranks_that_were_checked(capsys: Capture, tmp_path: Path) -> None:
    where = ("--nodes", "2", "--gpus-per-node", "4", "--partition", "gpu", "--time", "1-12:00:00")
    assert cli.main(["slurm", "my.yaml", "train.seed=3", *where, "--sbatch=--qos=high"]) == 0
    script = tmp_path / "run" / "slurm" / "train.sbatch"
    printed = capsys.readouterr()
    assert printed.out == script.read_text() and "sbatch run/slurm/train.sbatch" in printed.err
    assert {"nodes=2", "gpus-per-node=4", "partition=gpu", "time=1-12:00:00", "qos=high"} <= (
        _settings(script)
    )
    # those of launch/slurm_train.sbatch stay
    assert {"requeue", "signal=B:TERM@120", "open-mode=append"} <= _settings(script)
    assert script.read_text().endswith("/slurm_train.sbatch my.yaml train.seed=3\n")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_a_job_that_its_ranks_do_not_fit_is_not_written(capsys: Capture) -> None:
    assert cli.main(["slurm", "my.yaml", "--nodes", "3", "--gpus-per-node", "2"]) == 2
    assert "train.expert_parallel: 4 does not divide the world size 6" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_sweep_is_checked_line_by_line(capsys: Capture) -> None:
    sweep = Path("rates.txt")
    sweep.write_text("# of warm-up\noptimizer.lr=1e-3 name='a+b'\n\noptimizer.lr=2e-3\n")
    command = ["slurm", "my.yaml", "--tasks-per-node", "4", "--sweep", str(sweep)]
    assert cli.main(command) == 0
    script = Path("runs/rates/slurm/train.sbatch")
    assert "array=1-2" in _settings(script) and "--sweep rates.txt my.yaml" in script.read_text()
    capsys.readouterr()
    for line, message in (
        ("optimizer.lr=fast", "rates.txt: line 5: "),
        ("fast", "rates.txt: line 5: fast: should be key=value"),
        ("name='a", "rates.txt: line 5: a quote is not closed"),
    ):
        sweep.write_text("\noptimizer.lr=1e-3\n\n\n" + line)
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err
    sweep.write_text("# nothing\n")
    assert cli.main(command) == 2


MISTAKES = [
    (["--time", "soon"], "--time soon: should be minutes"),
    (["--gpus-per-node", "2", "--tasks-per-node", "2"], "--tasks-per-node: applies without GPUs"),
    (["--sbatch", "qos=high"], "--sbatch qos=high: should be an option"),
    (["--partition", "a\nb"], "has a line break"),
    (["--job", "prepare", "--sweep", "x"], "does not apply to --job prepare"),
    (["--sweep", "nowhere"], "--sweep nowhere: "),
    (["--job", "generate"], "my.yaml: no such run"),
    (["--nodes", "0"], "--nodes 0: must be at least 1"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: Capture) -> None:
    experiment = "nowhere/my.yaml" if "generate" in arguments else "my.yaml"
    assert cli.main(["slurm", experiment, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("ds-seq: error: ") == 1
    assert not Path("run").exists()


def test_options_of_generate_are_checked(capsys: Capture) -> None:
    Path("run").mkdir()
    (Path("run") / "config.yaml").write_text("")
    job = ["slurm", "run", "--job", "generate", "--nodes", "2"]
    assert cli.main([*job, "--", "--input", "a b", "--output", "out"]) == 0
    script = Path("run/slurm/generate.sbatch")
    assert script.read_text().endswith("slurm_generate.sbatch run --input 'a b' --output out\n")
    assert cli.main([*job, "--", "--inptu", "a"]) == 2
    assert "did you mean '--input'" in capsys.readouterr().err


def _sbatch(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    program = folder / "bin" / "sbatch"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_the_number_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    _sbatch(tmp_path, 'echo "$@" >called; echo "71;cluster"', monkeypatch)
    command = ["slurm", "my.yaml", "--job", "prepare", "--tasks-per-node", "8", "--after", "7"]
    assert cli.main([*command, "--submit"]) == 0
    assert "submitted job 71; its log is in run/slurm" in capsys.readouterr().err
    assert Path("called").read_text() == "--parsable run/slurm/prepare.sbatch\n"
    assert "dependency=afterok:7" in _settings(Path("run/slurm/prepare.sbatch"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'sbatch: error: invalid partition' >&2; exit 1", "refuses .*: invalid partition"),
        (None, "sbatch cannot be started .*the script is run/slurm/prepare.sbatch"),
    ],
)
def test_a_submission_that_fails_keeps_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, body: str | None, message: str
) -> None:
    if body is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        _sbatch(tmp_path, body, monkeypatch)
    assert cli.main(["slurm", "my.yaml", "--job", "prepare", "--submit"]) == 2
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert Path("run/slurm/prepare.sbatch").is_file()
