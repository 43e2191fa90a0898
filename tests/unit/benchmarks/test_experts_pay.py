"""What experts_pay.py makes of the logs of its runs."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common

LAYERS = ("encoder 1", "decoder 0")


def write_run(runs: Path, name: str, speed: float, updates: int = 10, tokens: float = 8e3) -> None:
    """Write the log of a run whose loss falls by a nat with each e-fold of updates."""
    (runs / name).mkdir(parents=True)
    records: list[dict[str, object]] = []
    for update in range(1, updates + 1):
        nll = 9.0 - math.log(update * speed)
        losses = {"loss/de.tsv": nll, "loss/fr.tsv": nll + 1.0, "raw_loss": nll + 0.1}
        routers = {
            f"moe/layer{number}/{figure}": 2.0 + number
            for number in range(len(LAYERS))
            for figure in ("entropy", "load_cv")
        }
        records.append({"kind": "train", "update": update, "tokens": tokens})
        valid = {"kind": "valid", "update": update, "nll": nll, **losses}
        records.append({**valid, "layers": LAYERS, **routers} if "moe" in name else valid)
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (runs / name / "metrics.jsonl").write_text(lines, encoding="utf-8")


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    """``experts_pay.py --report`` on a folder."""
    script = Path(common.__file__).with_name("experts_pay.py")
    command = [sys.executable, str(script), "--folder", str(folder), "--report", "--no-plot"]
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )


def test_experts_of_twice_the_speed_need_half_of_the_updates(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / "runs", f"constant-dense-{seed}", 1.0)
        write_run(tmp_path / "runs", f"constant-moe-{seed}", 2.0)
        write_run(tmp_path / "runs", f"decay-dense-{seed}", 1.0)
        write_run(tmp_path / "runs", f"decay-moe-{seed}", 2.0, updates=6)
    (tmp_path / "cost.json").write_text("2.0", encoding="utf-8")
    found = report(tmp_path)
    assert found.returncode == 1, found.stderr
    goals = [line for line in found.stdout.splitlines() if line.startswith("goal:")]
    assert "end at 0.60 of the updates" in goals[0] and "-0.182 nats" in goals[0]
    assert goals[0].endswith("reached"), "experts at 6 updates are where dense is at 12"
    assert "best loss: 0.5x, wanted <= 0.6x: reached" in goals[1]
    assert "processor time to it: 1x, wanted <= 0.9x: SHORT" in goals[2]
    assert "gap 0.693 nats, slope -1.00 nats" in found.stdout
    assert "so r by the slope is 0.50" in found.stdout
    rows = [line for line in found.stdout.splitlines() if line.startswith(("| fr", "| decoder 0"))]
    assert all(figure in rows[0] for figure in ("7.697", "7.004", "0.693", "0.500"))


@pytest.mark.parametrize(("speed", "end"), [(1.2, "0.329 nats"), (2.0, "-0.182 nats")])
def test_a_falling_rate_does_not_count_before_the_end(
    tmp_path: Path, speed: float, end: str
) -> None:
    write_run(tmp_path / "runs", "decay-dense-1", 1.0, updates=20)
    write_run(tmp_path / "runs", "decay-moe-1", speed, updates=12)
    found = report(tmp_path)
    assert f"less the dense one: {end}" in found.stdout
    share = re.search(r"best loss: ([\d.]+)x", found.stdout)
    assert share is not None, found.stdout
    assert float(share[1]) == pytest.approx(1.0 / speed, abs=0.01)
    steady = found.stdout.partition("At the ends")[0]
    assert "| 16 " in steady and "| 17 " not in steady, "dense falls over its last four updates"


@pytest.mark.slow
def test_other_batches_are_noticed(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "constant-dense-1", 1.0)
    write_run(tmp_path / "runs", "constant-moe-1", 1.0, tokens=9e3)
    assert "other batches before update 1" in report(tmp_path).stderr
    assert "no pair of runs was validated" in report(tmp_path / "runs").stderr
