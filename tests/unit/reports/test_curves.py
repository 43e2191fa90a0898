"""Figures of runs over time, read while they are written."""

from __future__ import annotations

import json
from pathlib import Path

from ds_seq.names import METRICS_FILE
from ds_seq.reports.curves import FollowedRun, RunCurves, read_curves, thinned
from ds_seq.text.samples import format_samples, read_samples


def line(update: int, kind: str = "train", **figures: object) -> bytes:
    return json.dumps({"kind": kind, "update": update, **figures}).encode() + b"\n"


def test_only_what_has_been_added_is_read_and_a_half_line_waits(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(line(1, loss=3.0) + line(2, loss=2.0)[:-5])
    followed = FollowedRun("x", tmp_path)
    assert list(followed.read().figures["loss"].updates) == [1]
    path.write_bytes(b"?" * len(line(1, loss=3.0)) + line(2, loss=2.0))  # not read again
    grown = followed.read()
    assert list(grown.figures["loss"].values) == [3.0, 2.0] and grown.damaged == 0


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(line(1, loss=3.0) + line(2, loss=9.0))
    followed = FollowedRun("x", tmp_path)
    followed.read()
    new = tmp_path / "new"
    new.write_bytes(line(1, loss=3.0) + line(3, loss=2.0) + line(4, loss=1.0))
    new.replace(path)
    assert list(followed.read().figures["loss"].updates) == [1, 3, 4]
    path.write_bytes(line(7, loss=5.0))
    assert list(followed.read().figures["loss"].updates) == [7]


def test_updates_that_a_run_repeats_replace_those_before() -> None:
    run = RunCurves("x")
    for update in (1, 2, 3, 2, 4):
        run.add(line(update, loss=float(update), tokens=10.0, **{"moe/layer0/load": [0.5, 0.5]}))
    run.add(line(2, "valid", samples="a"))
    run.add(line(1, "valid", samples="b"))
    assert list(run.figures["loss"].updates) == [1, 2, 4]
    assert run.curve("loss", "tokens")[0] == [10.0, 20.0, 30.0]
    assert list(run.loads["train"][0].updates) == [1, 2, 4]
    assert run.translations == {1: "b"}


def test_damaged_lines_are_counted_and_harm_no_figure(tmp_path: Path) -> None:
    bad = [b"[1]", b"\xff{", b'{"kind": "train"}', b"[" * 9000, b'{"kind": 1, "update": 1}']
    huge = b'{"kind": "train", "update": 2, "loss": 1%s, "lr": NaN}' % (b"0" * 400)
    null = line(3, loss=1.0, **{"moe/layer0/load": [None, 1.0]})
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join([*bad, huge, null]))
    run = read_curves("x", tmp_path)
    assert run.damaged == len(bad)
    assert run.curve("loss", "updates") == ([3.0], [1.0]) and "lr" not in run.figures
    assert not run.loads


def test_loads_of_training_validation_and_its_files_are_kept_apart() -> None:
    run = RunCurves("x")
    names = {"layers": ["encoder 1"]}
    run.add(line(1, **{"moe/layer0/load": [0.25, 0.75], **names}))
    run.add(
        line(1, "valid", **{"moe/layer0/load": [1.0, 0.0], "moe/layer0/load/a/b.de": [0.0, 1.0]})
    )
    assert {of: [*layers[0].at(5)] for of, layers in run.loads.items()} == {
        "train": [0.25, 0.75],
        "valid": [1.0, 0.0],
        "valid/a/b.de": [0.0, 1.0],
    }
    assert run.layers == ["encoder 1"] and len(run.loads["train"][0].at(0)) == 0


def test_a_thinned_curve_keeps_its_ends_and_extremes() -> None:
    xs = [float(x) for x in range(10_000)]
    ys = [0.0] * 10_000
    ys[1234], ys[8765], ys[0], ys[-1] = 9.0, -9.0, 1.0, 2.0
    few, values = thinned(xs, ys, 100)
    assert len(few) <= 102 and few == sorted(few)
    points = dict(zip(few, values, strict=True))
    assert {x: points[x] for x in (0.0, 1234.0, 8765.0, 9999.0)} == {
        0.0: 1.0,
        1234.0: 9.0,
        8765.0: -9.0,
        9999.0: 2.0,
    }
    assert thinned(xs[:50], ys[:50], 100) == (xs[:50], ys[:50])


def test_samples_are_read_as_they_were_written() -> None:
    sources = ["a  b", "", "source       c"]
    found = read_samples(format_samples(sources, ["x", "", "y\u2028z"], ["r", "s", ""], 3))
    assert [sample.source for sample in found] == sources
    assert [sample.translation for sample in found] == ["x", "", "y\u2028z"]
    assert [sample.reference for sample in found] == ["r", "s", ""]
    assert read_samples(format_samples(["a"], ["b"], None, 1))[0].reference is None
    assert read_samples("anything\ntranslation  b") == []
