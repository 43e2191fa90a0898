"""Which items share a batch, how long they wait, and that none is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ds_seq.serving.batcher import Batcher


@dataclass(frozen=True)
class Doubling:
    """A kind that doubles its items and remembers its batches."""

    name: str = "double"
    most_items: int = 8
    most_size: int = 100
    batches: list[list[int]] = field(default_factory=list, compare=False)
    opened: threading.Event = field(default_factory=threading.Event, compare=False)

    def __call__(self, items: Sequence[Any]) -> list[int]:
        self.opened.wait(30)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


def test_what_waits_shares_batches_within_their_bounds() -> None:
    kind, other = Doubling(), Doubling("other")
    seen: list[tuple[int, int]] = []
    batcher = Batcher(1, 0.0, lambda *facts: seen.append(facts))
    first = batcher.submit(kind, 0, 1)
    while batcher.num_waiting:
        time.sleep(0.001)  # the thread is busy with it until `opened`
    sizes = {number: 40 if number % 3 == 0 else 5 for number in range(1, 20)}
    answers = {number: batcher.submit(kind, number, size) for number, size in sizes.items()
               if number != 13}  # fmt: skip
    others = batcher.submit(other, 100, 1)
    kind.opened.set()
    other.opened.set()
    assert first.result(30) == 0 and others.result(30) == 200
    assert {number: answer.result(30) for number, answer in answers.items()} == {
        number: 2 * number for number in answers
    }
    batcher.close()
    assert other.batches == [[100]]
    assert sum(map(len, kind.batches)) == 19
    for batch in kind.batches[1:]:
        assert len(batch) <= 8 and len(batch) * max(sizes[i] for i in batch) <= 100
    # the oldest is in the first batch, with those of its own size
    assert 1 in kind.batches[1] and len(kind.batches[1]) == 8
    assert seen[1] == (8, 40)


def test_an_item_waits_for_company_and_not_longer() -> None:
    kind = Doubling()
    kind.opened.set()
    batcher = Batcher(1, 0.5, lambda *facts: None)
    started = time.monotonic()
    pair = [batcher.submit(kind, number, 1) for number in (1, 2)]
    assert [answer.result(30) for answer in pair] == [2, 4]
    assert time.monotonic() - started >= 0.5 and kind.batches == [[1, 2]]
    full = [batcher.submit(kind, number, 12) for number in range(8)]
    started = time.monotonic()
    assert [answer.result(30) for answer in full] == [2 * number for number in range(8)]
    batcher.close()
    assert kind.batches[1:] == [list(range(8))]


def test_errors_reach_those_who_asked_and_canceled_items_are_not_computed() -> None:
    kind = Doubling()
    batcher = Batcher(1, 0.0, lambda *facts: None)
    busy = batcher.submit(kind, 0, 1)
    while batcher.num_waiting:
        time.sleep(0.001)
    unlucky, with_it, canceled = (batcher.submit(kind, number, 1) for number in (13, 14, 15))
    canceled.cancel()
    kind.opened.set()
    assert busy.result(30) == 0
    for answer in (unlucky, with_it):
        with pytest.raises(ValueError, match="13"):
            answer.result(30)
    assert batcher.submit(kind, 21, 1).result(30) == 42  # the thread lives on
    batcher.close()
    assert [15] not in kind.batches and all(15 not in batch for batch in kind.batches)
    with pytest.raises(RuntimeError):
        batcher.submit(kind, 1, 1)


def test_closing_computes_what_waits() -> None:
    kind = Doubling()
    batcher = Batcher(2, 60.0, lambda *facts: None)
    answers = [batcher.submit(kind, number, 1) for number in range(5)]
    kind.opened.set()
    batcher.close()
    assert [answer.result(0) for answer in answers] == [0, 2, 4, 6, 8]
