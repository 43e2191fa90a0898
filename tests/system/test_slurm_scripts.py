"""The SLURM scripts, with stand-ins for the commands that they call."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Site:
    """A folder with stand-ins of SLURM's commands, and a job of 2 nodes with 8 GPUs each."""

    def __init__(self, folder: Path) -> None:
        self._calls = folder / "calls"
        for name, output in (("ds-seq", ""), ("srun", ""), ("scontrol", "echo node1")):
            script = folder / name
            script.write_text(
                f'#!/bin/sh\necho {name} "$@" >>{self._calls}\n{output}\n'
                f'[ "$1" != check ] || exit ${{CHECK_RESULT:-0}}\n'
            )
            script.chmod(0o755)
        self.environ = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "VIRTUAL_ENV": "active",
            "DS_SEQ_RANK_LOGS": str(folder),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_ON_NODE": "64",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }

    def run(self, name: str, *arguments: str | Path, **environ: str) -> tuple[int, list[str], str]:
        """Run a script; return its exit code, the commands that it has called, and its errors."""
        self._calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", ROOT / "launch" / f"slurm_{name}.sbatch", *arguments],
            env=self.environ | environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        return done.returncode, calls, done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_check_knows_the_number_of_ranks_and_stops_the_job(site: Site, tmp_path: Path) -> None:
    for result, code in (("0", 0), ("2", 2)):
        found, calls, errors = site.run("train", "my.yaml", "train.seed=3", CHECK_RESULT=result)
        assert found == code, errors
        assert "ds-seq check --world-size 16 my.yaml train.seed=3" in calls
        started = [line for line in calls if line.startswith("srun") and "--ntasks=16" in line]
        assert len(started) == (1 if code == 0 else 0)
        assert all(f"--output={tmp_path}/ds_seq-7.ranks/%t.out" in line for line in started)


ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3 run_dir=runs/rates/2"),
        ("optimizer.lr=1e-3 name=b", "optimizer.lr=1e-3 name=b"),
        ("data.vocab.name=b", "data.vocab.name=b run_dir=runs/rates/2"),
        ("data.dir='$(touch x) `a`'", "data.dir=$(touch x) `a` run_dir=runs/rates/2"),
    ],
)
def test_a_task_of_a_sweep_takes_its_line(
    site: Site, tmp_path: Path, line: str, settings: str
) -> None:
    sweep = tmp_path / "rates.txt"
    sweep.write_text(f"# two\nname=a\n\n  {line}\n")
    code, calls, errors = site.run("train", "--sweep", sweep, "my.yaml", "train.seed=3", **ARRAY)
    assert code == 0, errors
    assert f"ds-seq check --world-size 16 my.yaml train.seed=3 {settings}" in calls
    assert any(f"my.yaml train.seed=3 {settings} --resume" in call for call in calls)
    assert any("ds_seq-7_2.ranks" in call for call in calls)


def test_mistakes_of_a_sweep(site: Site, tmp_path: Path) -> None:
    sweep = tmp_path / "rates.txt"
    sweep.write_text("name=a\n")
    for arguments, environ, message in (
        (["--sweep", sweep, "my.yaml"], ARRAY, "has no line 2; it has 1"),
        (["--sweep", sweep, "my.yaml"], {}, "needs a job array"),
        (["--sweep", tmp_path / "no", "my.yaml"], ARRAY, "no such file"),
        (["--sweep"], ARRAY, "usage"),
        (["my.yaml"], ARRAY, "give it --sweep FILE"),
    ):
        code, calls, errors = site.run("train", *arguments, **environ)
        assert code == 2 and message in errors
        assert not any(call.startswith("srun") for call in calls)


def test_preparation_and_translation_are_one_step_each(site: Site) -> None:
    code, calls, errors = site.run("prepare", "my.yaml", "data.workers=1")
    assert code == 0, errors
    assert any("--mpi=pmix ds-seq prepare my.yaml data.workers=1" in call for call in calls)
    code, calls, errors = site.run("generate", "run", "--input", "f")
    assert code == 0, errors
    assert calls[-1].endswith("ds-seq generate run --input f") and "--ntasks=16" in calls[-1]
