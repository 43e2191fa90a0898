"""Watched worker processes: results, errors, and the name of one that dies or hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ds_seq.data import processes, watching
from ds_seq.data.parallel import map_as_finished, map_in_order
from ds_seq.data.processes import LostProcess, may_fork
from ds_seq.data.progress import Progress
from ds_seq.data.watching import Watched
from ds_seq.errors import UserError

Map = Callable[..., Iterator[Any]]
EITHER = pytest.mark.parametrize("spread", [map_in_order, map_as_finished])


def _work(state: int, item: int) -> int:
    if item == 6:
        time.sleep(0.5)
    if item == 7:
        raise UserError("item 7: is wrong")
    if item == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 9:
        os.kill(os.getpid(), signal.SIGSTOP)
    return state + item


@EITHER
def test_results_come_until_an_error_which_keeps_its_message(spread: Map) -> None:
    items, workers = [*range(5)] * 4 + [7], 2
    found = []
    with pytest.raises(UserError, match="^item 7: is wrong$"):
        for result in spread(_work, 10, items, workers):
            found.append(result)
    # the error may overtake what is under way, which `WatchedPool.run` bounds
    assert len(found) >= len(items) - 4 * workers and set(found) == {10, 11, 12, 13, 14}


def test_a_slow_item_keeps_its_place_and_holds_up_few_others() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in [6, *[1] * 100]:
            taken.append(item)
            yield item

    found = map_in_order(_work, 10, items(), 2)
    assert next(found) == 16
    assert len(taken) <= 2 * 4 + 1, "results that wait are bounded"
    assert list(found) == [11] * 100
    assert sorted(map_as_finished(_work, 10, [6, 1, 2, 3], 2)) == [11, 12, 13, 16]
    assert list(map_as_finished(_work, 10, [6, 1, 2, 3], 2))[-1] == 16


@EITHER
def test_a_killed_worker_is_named(spread: Map) -> None:
    with pytest.raises(
        LostProcess, match=r"^worker [12] of 2 \(process \d+\) was killed by SIGKILL, perhaps"
    ):
        list(spread(_work, 0, [1, 8], 2))


@EITHER
def test_a_stopped_worker_is_named(spread: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENCE", 3.0)
    started = time.monotonic()
    with pytest.raises(LostProcess, match=r"^worker [12] of 2 \(process \d+\) has given no sign"):
        list(spread(_work, 0, [9, 1], 2))
    assert time.monotonic() - started < 60


class _Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def _odd(state: int, item: int) -> object:
    if item == 0:
        raise _Odd(1, 2)
    return lambda: item  # cannot be sent


@EITHER
@pytest.mark.parametrize(("item", "message"), [(0, "_Odd: 1 and 2"), (1, "lambda")])
def test_what_cannot_be_sent_is_an_error_and_no_hang(spread: Map, item: int, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        list(spread(_odd, 0, [item, item], 2))
    assert "in a worker process" in str(caught.value.__cause__)


def _fails(state: int) -> None:
    raise UserError(f"state {state} cannot be loaded")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_while_preparing_is_that_of_the_caller(workers: int) -> None:
    with pytest.raises(UserError, match="^state 3 cannot be loaded$"):
        list(map_as_finished(_work, 3, [1, 2], workers, _fails))


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


def test_a_process_with_other_threads_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_HAVE_THREADS", ())
    before = {thread.name for thread in threading.enumerate()}
    if before == {"MainThread"}:
        assert may_fork()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not may_fork()
        assert list(map_in_order(_work, 1, [1, 2], 2)) == [2, 3]
    finally:
        stop.set()
        thread.join()
    assert {thread.name for thread in threading.enumerate()} == before, "no thread is left"


def test_a_bar_on_a_terminal_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are copies of this process start many times faster."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    before = threading.active_count()
    with Progress("testing", 10) as progress:
        progress(1)
        assert threading.active_count() == before


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program starts later, such as a launcher, may need the working folder."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert list(map_in_order(_work, 1, [1, 2], workers=2)) == [2, 3]
    assert "PYTHONSAFEPATH" not in os.environ
