"""Watched worker processes: results, errors, and the name of one that dies or hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ds_seq.data.cleaning import pool
from ds_seq.data.cleaning.pool import Watched, map_watched
from ds_seq.errors import UserError


def _work(state: int, item: int) -> int:
    if item == 7:
        raise UserError("item 7: is wrong")
    if item == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 9:
        os.kill(os.getpid(), signal.SIGSTOP)
    return state + item


def test_results_come_until_an_error_which_keeps_its_message() -> None:
    items = [*range(5)] * 4 + [7]
    found = []
    with pytest.raises(UserError, match="^item 7: is wrong$"):
        for result in map_watched(_work, 10, items, 2):
            found.append(result)
    assert len(found) >= len(items) - 2 and set(found) == {10, 11, 12, 13, 14}


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"^cleaning worker [12] of 2 \(process \d+\) was killed by SIGKILL, perhaps",
    ):
        list(map_watched(_work, 0, [1, 8], 2))


def test_a_stopped_worker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SILENCE", 3.0)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^cleaning worker [12] of 2 \(process \d+\) has given no"):
        list(map_watched(_work, 0, [9, 1], 2))
    assert time.monotonic() - started < 60


def test_silence_does_not_count_while_nobody_was_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = Watched(40.0)
    now = 3600.0  # the whole machine slept
    assert not watched.is_late(False)
    for _ in range(38):
        now += 1.0
        assert not watched.is_late(False)
    now += 1.5
    assert watched.is_late(False)
    assert not watched.is_late(True)
