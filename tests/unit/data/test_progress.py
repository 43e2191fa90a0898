"""Progress without a terminal: an occasional plain line, with the time left."""

from __future__ import annotations

import pytest

from ds_seq.data import progress
from ds_seq.data.progress import Progress


def test_plain_lines_say_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 40.0, 40.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "mark", lambda: None)
    with Progress("reading", 2000, "lines") as report:
        report(100)  # too early for a line
        report(300)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 400 of 2,000 lines, 40 s, about 160 s left",
        "reading: 400 of 2,000 lines, 50 s",
    ]
