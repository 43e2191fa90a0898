"""What the benchmarks share: verdicts, tables, the record, and children that train on command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import common, experiments
from benchmarks.common import Goal, Spread, table
from benchmarks.experiments import fetch_text
from benchmarks.worker import Worker

CHILD = """
from benchmarks.worker import Channel, Stopwatch
channel = Channel()
print("noise of a library")
channel.ready(7, "child 1.0")
while (command := channel.command()) is not None:
    updates = command.number
    if updates == 13:
        raise SystemExit("out of luck")
    channel.done(Stopwatch().block(updates, 10 * updates, 0.5))
"""


@pytest.fixture
def child(tmp_path: Path) -> Worker:
    """A child that counts ten tokens an update."""
    root = str(Path(common.__file__).parent.parent)
    command = [sys.executable, "-c", CHILD]
    return Worker("child", command, tmp_path / "child.log", {"PYTHONPATH": root})


def test_texts_of_other_files_have_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments.subprocess, "run", lambda *_, **__: None)
    names = ("general.en-de.train.tsv.xz", "general.en-de.test.tsv.xz", "more/general.en-de.tsv")
    folders = [fetch_text(tmp_path, tmp_path / name) for name in (*names, *names)]
    assert len({*folders, fetch_text(tmp_path, None)}) == len(names) + 1
    assert folders[:3] == folders[3:] and folders[0].name.startswith("throughput-general.en-de.tr")


@pytest.mark.parametrize(
    ("figure", "at_least", "reached"),
    [(1.3, True, True), (1.29, True, False), (1.3, False, True), (1.31, False, False)],
)
def test_a_goal_is_reached_at_its_bound(figure: float, at_least: bool, reached: bool) -> None:
    goal = Goal("speed", figure, 1.3, "x", at_least)
    assert goal.reached is reached
    assert str(goal).endswith("reached" if reached else "SHORT")


@pytest.mark.parametrize("at_least", [True, False])
def test_a_figure_that_is_no_number_is_short(at_least: bool) -> None:
    assert not Goal("speed", float("nan"), 1.0, at_least=at_least).reached


def test_one_short_goal_fails_and_all_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(sys, "argv", ["dir/bench.py", "--tsv", "/home/me/text.tsv"])
    good, bad = Goal("good", 2.0, 1.0), Goal("bad", 0.5, 1.0)
    assert common.finish("Title", "the body", [good], record=False) == 0
    assert not common.RESULTS.exists()
    assert common.finish("Title", "the body", [good, bad], record=True) == 1
    text = common.RESULTS.read_text(encoding="utf-8")
    assert all(part in text for part in ("Title", "the body", str(good), str(bad)))
    assert "bench.py --tsv text.tsv" in text and "/home/me" not in text


def test_a_table_is_aligned() -> None:
    lines = table(["name", "n"], [["a", "1,000"], ["long name", "2"]]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]).text(1) == "2.0 (1.0-3.0)"


def test_a_child_answers_each_command(child: Worker) -> None:
    with child:
        assert (child.num_parameters, child.versions) == (7, "child 1.0")
        assert [child.run(n).target_tokens for n in (2, 3)] == [20, 30]


def test_a_dead_child_is_reported_with_its_last_words(child: Worker) -> None:
    with child, pytest.raises(SystemExit, match="(?s)child ended with status 1.*out of luck"):
        child.run(13)
