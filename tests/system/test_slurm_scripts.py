"""The SLURM scripts, with stand-ins for the commands that they call."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_check_knows_the_number_of_ranks_and_stops_the_job(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    for name, output in (("ds-seq", ""), ("srun", ""), ("scontrol", "echo node1")):
        script = tmp_path / name
        script.write_text(
            f'#!/bin/sh\necho {name} "$@" >>{calls}\n{output}\n'
            f'[ "$1" != check ] || exit ${{CHECK_RESULT}}\n'
        )
        script.chmod(0o755)
    job = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VIRTUAL_ENV": "active",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_ON_NODE": "64",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    script = str(ROOT / "launch" / "slurm_train.sbatch")
    for result, code in (("0", 0), ("2", 2)):
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", script, "my.yaml", "train.seed=3"],
            env={**job, "CHECK_RESULT": result}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        lines = calls.read_text().splitlines()
        assert "ds-seq check --world-size 16 my.yaml train.seed=3" in lines
        started = [line for line in lines if line.startswith("srun") and "--ntasks=16" in line]
        assert len(started) == (1 if code == 0 else 0)
