"""Learning curves: where one first reaches another, their record, and the report on it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import curves
from benchmarks.curves import Curve, Point, Record, curves_of, first_reach, reach_ratio

VOCAB = 100
SETTINGS: dict[str, Any] = {
    "title": "a small model",
    "run": "script on machine",
    "vocab_size": VOCAB,
    "text": "some text",
    "parameters": {"dense": 10, "MoE": 40},
    "active": {"dense": 10, "MoE": 10},
    "threads": 1,
    "slice": 5,
    "valid_sentences": 7,
    "experiments": {"MoE": {"model": {"moe": {"num_experts": 8, "every": 2, "top_k": 1}}}},
}


def point(system: str, update: int, bleu: float, speed: float = 1.0, seed: int = 1) -> Point:
    """A validation after ``update`` updates, ``speed`` of them per second."""
    seconds = update / speed
    return Point(system, seed, update, seconds, 10 * update, bleu, 4.0 - bleu / 10, 1.0)


def test_a_level_between_two_points_is_reached_between_them() -> None:
    curve = [(0.0, 0.0), (10.0, 4.0), (20.0, 8.0)]
    assert first_reach(curve, 6.0) == pytest.approx(15.0)
    assert first_reach(curve, 4.0) == 10.0
    assert first_reach(curve, 0.0) == 0.0
    assert math.isnan(first_reach(curve, 8.1))


def test_the_first_time_counts_though_the_curve_falls_again() -> None:
    curve = [(0.0, 0.0), (10.0, 10.0), (20.0, 5.0), (30.0, 10.0)]
    assert first_reach(curve, 7.0) == pytest.approx(7.0)
    assert first_reach(curve, 10.0) == 10.0


@pytest.mark.parametrize("share", [0.3, 0.5, 0.95, 1.0])
def test_a_curve_of_twice_the_speed_needs_half_the_way(share: float) -> None:
    slow = [(0.0, 0.0), (10.0, 3.0), (20.0, 9.1), (30.0, 8.0)]
    fast = [(x / 2, y) for x, y in slow]
    assert reach_ratio(fast, slow, share) == pytest.approx(0.5)
    assert reach_ratio(slow, slow, share) == 1.0


def test_a_curve_that_stays_below_never_gets_there() -> None:
    assert math.isinf(reach_ratio([(0.0, 0.0), (9.0, 4.0)], [(0.0, 0.0), (9.0, 5.0)]))
    assert reach_ratio([(0.0, 0.0), (9.0, 4.0)], [(0.0, 0.0), (9.0, 5.0)], 0.8) > 1


def test_shares_of_a_loss_count_from_knowing_nothing() -> None:
    """Halfway down from log(vocabulary) to the best loss, despite the sign."""
    dense = Curve([point("dense", 100, 20.0)], VOCAB)
    half = reach_ratio(dense.against("update", "loss"), dense.against("update", "loss"), 0.5)
    assert half == 1.0
    level = (math.log(VOCAB) + dense.best_loss.loss) / 2
    assert first_reach(dense.against("update", "loss"), -level) == pytest.approx(50.0)


def test_more_updates_a_second_change_time_and_not_updates() -> None:
    dense = Curve([point("dense", n, n / 10, speed=1.0) for n in (100, 200)], VOCAB)
    moe = Curve([point("MoE", n, n / 10, speed=0.5) for n in (100, 200)], VOCAB)
    for figure in ("bleu", "loss"):
        updates, seconds = (
            reach_ratio(moe.against(axis, figure), dense.against(axis, figure))
            for axis in ("update", "seconds")
        )
        assert (updates, seconds) == (pytest.approx(1.0), pytest.approx(2.0))


def test_a_record_gives_back_what_was_added(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "record.jsonl")
    points = [point(system, n, n / 7) for n in (200, 100) for system in ("dense", "MoE")]
    record.begin(SETTINGS)
    for each in points:
        record.add(each)
    assert record.read() == (SETTINGS, points)
    by_system = curves_of(points, VOCAB)[1]
    assert [p.update for p in by_system["MoE"].points] == [100, 200]


@pytest.mark.parametrize(
    ("text", "line"), [("", 1), ("{}\n", 1), ('{"settings": {}}\n{"seed": 1}\n', 2)]
)
def test_a_file_that_is_no_record_is_named_with_its_line(
    tmp_path: Path, text: str, line: int
) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"record.jsonl:{line}: "):
        Record(path).read()


def run_report(path: Path) -> subprocess.CompletedProcess[str]:
    """``moe_vs_dense.py`` on a record."""
    script = Path(curves.__file__).with_name("moe_vs_dense.py")
    command = [sys.executable, str(script), "--report", str(path), "--no-plot"]
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )


def test_the_report_distinguishes_updates_and_time(tmp_path: Path) -> None:
    """Experts that need half the updates at a third of the speed: one goal of two is reached."""
    path = tmp_path / "record.jsonl"
    record = Record(path)
    record.begin(SETTINGS)
    for update in (100, 200, 300):
        record.add(point("dense", update, update / 10))
        record.add(point("MoE", update, update / 5, speed=1 / 3))
    result = run_report(path)
    assert result.returncode == 1, result.stderr
    goals = [line for line in result.stdout.splitlines() if line.startswith("goal: ")]
    assert "updates" in goals[0] and ": 0.5x" in goals[0] and goals[0].endswith("reached")
    assert "time" in goals[1] and ": 1.5x" in goals[1] and goals[1].endswith("SHORT")
    assert "small model" in result.stdout and "100% of its best" in result.stdout


def test_a_bad_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text("nonsense\n", encoding="utf-8")
    result = run_report(path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "record.jsonl:1" in result.stderr
