"""A rank dies, stops or hangs: the others end within the limit, and say where they were."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ds_seq import activity, distributed
from ds_seq.errors import EXIT_RANK_LOST
from tests.distributed.killable import Ranks, ranks

LIMIT = 2.0
SLACK = 5.0  # the cores are shared by others; benchmarks/survival_hangs.py measures


def _work(seconds: float, at: float = 0.0, rank: int = -1) -> int:
    """Updates with a collective each; `rank` leaves the loop after `at` seconds, and sleeps."""
    with distributed.joined(LIMIT) as world:
        started = time.monotonic()
        update = 0
        while time.monotonic() - started < seconds:
            if world.rank == rank and time.monotonic() - started > at:
                time.sleep(60.0)
            distributed.sum_over_ranks(torch.ones(5))
            update += 1
            activity.finished("training", update)
            if update == 3:
                print("at work", flush=True)
            time.sleep(0.01)
    return 0


def _all_at_work(run: Ranks, size: int = 2) -> Callable[[], bool]:
    return lambda: all("at work" in run.text(rank) for rank in range(size))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_ends_the_others(victim: int, tmp_path: Path) -> None:
    with ranks(lambda: _work(60.0), 2, tmp_path) as run:
        run.wait_until(_all_at_work(run))
        run.send(victim, signal.SIGSTOP)
        [end] = run.wait([1 - victim], LIMIT + SLACK)
    assert end.code == EXIT_RANK_LOST
    assert f"rank {victim}" in end.text and "no sign of life" in end.text
    assert "all_reduce of 20 bytes, number" in end.text and "waiting in it for" in end.text
    assert "in sum_over_ranks" in end.text  # the stack


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others(victim: int, tmp_path: Path) -> None:
    with ranks(lambda: _work(60.0), 2, tmp_path) as run:
        run.wait_until(_all_at_work(run))
        run.send(victim, signal.SIGKILL)
        [end] = run.wait([1 - victim], LIMIT + SLACK)
    assert end.code == EXIT_RANK_LOST
    assert "all_reduce" in end.text and "in sum_over_ranks" in end.text


def test_a_rank_that_hangs_ends_itself_and_the_others(tmp_path: Path) -> None:
    with ranks(lambda: _work(60.0, 0.2, rank=1), 2, tmp_path) as run:
        first, second = run.wait([0, 1], 0.2 + 2 * LIMIT + 10.0)
    assert first.code == second.code == EXIT_RANK_LOST
    assert "no progress" in second.text and "in _work" in second.text
    assert "rank 1: no progress" in first.text and "waiting in it for" in first.text


def _waits_long() -> int:
    """Rank 0 works for twice the limit, with marks, while rank 1 waits in a collective."""
    with distributed.joined(LIMIT) as world:
        activity.finished("training", 1)
        for _ in range(20 if world.is_first else 0):
            time.sleep(LIMIT / 10)
            activity.mark()
        distributed.barrier()
        with activity.phase("saving", may_take_long=True):
            time.sleep(1.5 * LIMIT if world.is_first else 0.0)
        distributed.barrier()
    return 0


def test_work_of_one_rank_is_waited_for(tmp_path: Path) -> None:
    with ranks(_waits_long, 2, tmp_path) as run:
        for end in run.wait([0, 1], 60.0):
            assert end.code == 0, end.text


def _deadlock() -> int:
    """Each rank waits for the other."""
    with distributed.joined(LIMIT) as world:
        activity.finished("training", 1)
        print("at work", flush=True)
        if world.is_first:
            dist.recv(torch.zeros(1), src=1)
        dist.recv(torch.zeros(1), src=0)
    return 0


def test_ranks_that_wait_for_each_other_end(tmp_path: Path) -> None:
    with ranks(_deadlock, 2, tmp_path) as run:
        run.wait_until(_all_at_work(run))
        ends = run.wait([0, 1], LIMIT + 2 * SLACK)
    assert [end.code for end in ends] == [EXIT_RANK_LOST] * 2
    assert all("last collective: recv of 4 bytes" in end.text for end in ends)


def _stopped_alone() -> int:
    with distributed.joined(LIMIT):
        activity.finished("training", 1)
        print("at work", flush=True)
        for _ in range(20):
            time.sleep(0.1)
            activity.mark()
    return 0


def test_a_process_that_was_stopped_and_continued_goes_on(tmp_path: Path) -> None:
    with ranks(_stopped_alone, 1, tmp_path) as run:
        run.wait_until(_all_at_work(run, 1))
        run.send(0, signal.SIGSTOP)
        time.sleep(1.5 * LIMIT)
        run.send(0, signal.SIGCONT)
        [end] = run.wait([0], 20.0)
    assert end.code == 0, end.text


def _keeps_the_lock() -> int:
    """Rank 1 computes in C without giving the interpreter lock back."""
    with distributed.joined(LIMIT) as world:
        activity.finished("training", 1)
        distributed.barrier()
        print("at work", flush=True)
        if world.rank == 1:
            sum(range(10**11))
        distributed.barrier()
    return 0


def test_a_rank_that_keeps_the_interpreter_lock_ends(tmp_path: Path) -> None:
    with ranks(_keeps_the_lock, 2, tmp_path) as run:
        run.wait_until(_all_at_work(run))
        first, second = run.wait([0, 1], LIMIT + 2 * SLACK)
    assert first.code == EXIT_RANK_LOST
    # on a busy machine, rank 1 may end before rank 0 has judged it, whose collective fails then
    assert "rank 1" in first.text or "another rank has died" in first.text
    assert second.code == 1 and "in _keeps_the_lock" in second.text


def test_the_watch_leaves_nothing_behind() -> None:
    before = threading.enumerate()
    reduce = dist.all_reduce
    with distributed.watched(distributed.World(), 5.0):
        assert len(threading.enumerate()) == len(before) + 1
        assert dist.all_reduce is not reduce
    assert threading.enumerate() == before
    assert dist.all_reduce is reduce
    assert os.environ.get("RANK") is None
