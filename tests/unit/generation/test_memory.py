"""A batch for which memory does not suffice: split, retried, and remembered."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.generation.translate import (
    SearchPlan,
    plan_lines,
    search_plan,
)
from tests.unit.search.table_model import SYMBOLS, TableModel, WordTokenizer
from tests.values import batch_limits, beam_search

VOCAB = 9
CPU = torch.device("cpu")
SEARCH = beam_search(SYMBOLS, beam=2)
LINES = [f"w{4 + i % 5} w{4 + i // 5}" for i in range(25)]


def too_much_of_the_host() -> None:
    torch.empty(1 << 50)  # the allocator's own error


def too_much_of_a_device() -> None:
    raise torch.OutOfMemoryError("out of memory")


def too_much_of_python() -> None:
    bytearray(1 << 62)


class SmallModel(TableModel):
    """Has room for a given number of sentences; records the sizes that were tried."""

    def __init__(self, room: int, fail: Callable[[], None] = too_much_of_the_host) -> None:
        super().__init__(VOCAB)
        self.room = room
        self.fail = fail
        self.tried: list[int] = []
        self.garbage: weakref.ref[Tensor] | None = None

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        self.tried.append(len(source))
        assert self.garbage is None or self.garbage() is None, "still holds what did not suffice"
        large = torch.zeros(3)
        if len(source) > self.room:
            self.garbage = weakref.ref(large)
            self.fail()
        return super().encode(source, source_mask)


def plan(max_sentences: int) -> SearchPlan:
    return plan_lines(WordTokenizer(VOCAB), LINES, batch_limits(max_sentences=max_sentences))


@pytest.mark.parametrize("fail", [too_much_of_the_host, too_much_of_a_device, too_much_of_python])
def test_a_large_batch_is_split_until_it_fits(fail: Callable[[], None]) -> None:
    model = SmallModel(3, fail)
    found = [one for batch in search_plan(model, plan(25), SEARCH, CPU) for one in batch]
    assert sorted(one.line for one in found) == list(range(25))
    whole = sum(search_plan(TableModel(VOCAB), plan(25), SEARCH, CPU), [])
    assert sorted(found) == sorted(whole)
    assert [size for size in model.tried if size > 3] == [25, 13, 7, 4]


def test_later_batches_do_not_fail_for_it_again() -> None:
    model = SmallModel(2)
    for _ in search_plan(model, plan(8), SEARCH, CPU):
        pass
    assert [size for size in model.tried if size > 2] == [8, 4]
    assert sum(size for size in model.tried if size <= 2) == 25


def test_one_sentence_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"^line 1: out of memory with this sentence of 3 tokens"):
        list(search_plan(SmallModel(0), plan(25), SEARCH, CPU))


def test_a_batch_that_others_take_part_in_is_not_split() -> None:
    with pytest.raises(UserError, match=r"25 sentence\(s\), 75 tokens, which cannot be split"):
        list(search_plan(SmallModel(3), plan(25), SEARCH, CPU, lambda flag: flag))


def test_other_errors_are_not_mistaken_for_it() -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(search_plan(SmallModel(0, fail), plan(25), SEARCH, CPU))
