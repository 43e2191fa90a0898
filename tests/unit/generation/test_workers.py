"""Searches in threads: the same answers in the same order, and nothing left behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from ds_seq.generation.workers import MOST_WORKERS, default_workers, map_in_threads


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_answers_come_in_order(workers):
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0.0)
        return item * item

    assert list(map_in_threads(slow_at_first, range(10), workers)) == [i * i for i in range(10)]
    assert list(map_in_threads(slow_at_first, [], workers)) == []


def test_several_are_in_work_at_a_time():
    both = threading.Barrier(2, timeout=10)  # breaks if one has to end before the other begins

    def meet(item: int) -> int:
        both.wait()
        return item

    assert list(map_in_threads(meet, range(4), 2)) == [0, 1, 2, 3]


def test_no_more_is_taken_than_is_needed():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    answers = map_in_threads(lambda item: item, items(), 2)
    next(answers)
    assert len(taken) <= 4
    answers.close()


@pytest.mark.parametrize("ends", ["error", "closed"])
def test_threads_and_settings_are_as_before(ends):
    threads, settings = threading.active_count(), torch.get_num_threads()

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return torch.get_num_threads()

    answers = map_in_threads(fail, range(10), 2)
    if ends == "error":
        with pytest.raises(ValueError, match="item 3"):
            list(answers)
    else:
        assert next(answers) == max(settings // 2, 1)
        answers.close()
    assert threading.active_count() == threads
    assert torch.get_num_threads() == settings


def test_one_search_for_each_thread_of_a_cpu():
    assert default_workers(torch.device("cpu")) == min(torch.get_num_threads(), MOST_WORKERS)
    assert default_workers(torch.device("cuda")) == 1
