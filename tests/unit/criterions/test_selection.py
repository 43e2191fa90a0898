"""Which tokens are distilled, and what queues store."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ds_seq.criterions.selection import BatchSelector, QueueSelector, hardest
from tests.unit.criterions.made import PAD, batch_of, row_batch

NAN, INF = math.nan, math.inf


def judge(
    selector: BatchSelector | QueueSelector, values: list[float], tag: int = 4
) -> list[float]:
    """Return the losses of the tokens that a selector selects from one sentence."""
    nll = torch.tensor(values)
    picked: list[float] = nll[selector.select(nll, row_batch(len(values), tag))].tolist()
    return [round(value, 6) for value in picked]


def update(selector: QueueSelector, values: list[float], tag: int = 4) -> list[float]:
    picked = judge(selector, values, tag)
    selector.end_update(True)
    return picked


def queue(selector: QueueSelector, key: str = "all") -> list[float]:
    """Return the losses that the only rank stores for a language."""
    (values,) = (v for name, v in selector.state().items() if name.endswith(f"queue.{key}"))
    return [round(value, 6) for value in values.tolist()]


def test_worked_examples_of_a_batch() -> None:
    values = [0.5, 2, 1, 3, 0.1, 1.5]
    assert judge(BatchSelector(0.5), values) == [2, 3, 1.5]  # the third largest is 1.5
    assert judge(BatchSelector(0.3), values) == [2, 3]  # ceil(1.8) = 2
    assert judge(BatchSelector(0.5), [1, 1, 1, 2]) == [
        1,
        1,
        1,
        2,
    ]  # all that equal the second largest
    assert judge(BatchSelector(1.0), values) == values
    assert judge(BatchSelector(0.01), values) == [3]


def test_padding_is_neither_counted_nor_selected() -> None:
    # losses of real tokens only: ceil(3 * 0.25) = 1, whatever the padding
    batch = batch_of([[4, 5, PAD, PAD], [3, PAD, PAD, PAD]])
    nll = torch.tensor([2.0, 1.0, 3.0])
    for selector in (BatchSelector(0.25), QueueSelector(0.25, 9, shared=False)):
        assert selector.select(nll, batch).tolist() == [2]


def test_the_gate_is_exact_for_any_count_and_rate() -> None:
    generator = torch.Generator().manual_seed(3)
    for count in (1, 2, 7, 40, 333):
        values = torch.randn(count, generator=generator)
        ranked = sorted(values.tolist(), reverse=True)
        for percent in (1, 10, 29, 50, 55, 70, 100):
            place = -(-count * percent // 100)  # whole numbers round nothing
            assert hardest(values, percent / 100) == ranked[place - 1]
    hundred = torch.arange(100.0)
    assert hardest(hundred, 0.55) == 45.0  # though 0.55 * 100 is more than 55 in floating point
    assert hardest(torch.zeros(0), 0.5) == -INF


def test_trace_of_a_rank_s_own_queue() -> None:
    """Size 6, rate 1/2; each batch is compared with a queue that includes it."""
    selector = QueueSelector(0.5, 6, shared=False)
    # queue 1 2 3: the ceil(1.5) = second largest is 2
    assert update(selector, [1, 2, 3]) == [2, 3]
    # queue 1 2 3 4 .5 .2, exactly full: the third largest is 2
    assert update(selector, [4, 0.5, 0.2]) == [4]
    assert queue(selector) == [1, 2, 3, 4, 0.5, 0.2]
    # the oldest three go: 4 .5 .2 2.5 2.5 .1, the third largest is 2.5, which two have
    assert update(selector, [2.5, 2.5, 0.1]) == [2.5, 2.5]
    assert queue(selector) == [4, 0.5, 0.2, 2.5, 2.5, 0.1]
    # ten at once: the last six remain, 5 to 10, and their third largest is 8
    assert update(selector, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == [8, 9, 10]
    assert queue(selector) == [5, 6, 7, 8, 9, 10]


def test_trace_of_a_shared_queue() -> None:
    """The same, but a batch is compared with the queue before its update."""
    selector = QueueSelector(0.5, 6, shared=True)
    assert update(selector, [1, 2, 3]) == [1, 2, 3]  # nothing is known yet
    # queue 1 2 3, selector 2, for all batches of the update alike
    assert judge(selector, [4, 0.5]) == [4]
    assert judge(selector, [2, 0.2]) == [2]
    selector.end_update(True)
    assert queue(selector) == [2, 3, 4, 0.5, 2, 0.2]
    # selector 2
    assert update(selector, [2.5, 1.9, 2]) == [2.5, 2]
    assert queue(selector) == [0.5, 2, 0.2, 2.5, 1.9, 2]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_queue_holds_the_most_recent(shared: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(1, 50, (), generator=generator))
    selector, everything = QueueSelector(0.3, size, shared), []
    for _ in range(12):
        for _ in range(2):
            count = int(torch.randint(0, 30, (), generator=generator))
            values = torch.rand(count, generator=generator).tolist()
            judge(selector, values)
            everything += values
        selector.end_update(True)
        assert queue(selector) == [round(value, 6) for value in everything[-size:]]


@pytest.mark.parametrize("shared", [True, False])
def test_a_rate_of_one_selects_all_tokens(shared: bool) -> None:
    selector = QueueSelector(1.0, 6, shared)
    for values in ([5.0, 6.0], [7.0, 0.5], [0.1, 9.0]):  # some are easier than all before
        assert update(selector, values) == values
    selector.training = False
    assert judge(selector, [0.01]) == [0.01]


def test_a_shared_queue_starts_with_all_tokens() -> None:
    """The current batch has no part in its threshold, or the selection depended on the layout."""
    selector = QueueSelector(0.25, 9, True, tags=[5])
    assert update(selector, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert update(selector, [1, 2, 3, 4]) == [4]
    assert update(selector, [1, 2], tag=5) == [1, 2], "so does that of a new language"


@pytest.mark.parametrize("shared", [True, False])
def test_validation_judges_and_leaves_no_trace(shared: bool) -> None:
    selector = QueueSelector(0.5, 6, shared)
    selector.training = False
    assert judge(selector, [7, 8]) == [7, 8]  # before any update
    selector.training = True
    update(selector, [1, 2, 3, 4])
    selector.training = False
    for _ in range(2):
        assert judge(selector, [2.9, 3, 50, 60, 70]) == [3, 50, 60, 70]
    assert queue(selector) == [1, 2, 3, 4]
    selector.training = True
    judge(selector, [5])
    selector.training = False  # amid an update, too
    judge(selector, [99])
    selector.training = True
    selector.end_update(True)
    assert queue(selector) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("shared", [True, False])
def test_an_update_that_was_not_applied_is_forgotten(shared: bool) -> None:
    selector, other = QueueSelector(0.5, 6, shared), QueueSelector(0.5, 6, shared)
    for one in (selector, other):
        update(one, [1, 2, 3])
    judge(selector, [100, 200])
    judge(selector, [300])
    selector.end_update(False)
    assert queue(selector) == [1, 2, 3]
    for values in ([2.5, 0.1], [2.2, 0.2]):
        assert update(selector, values) == update(other, values)
    assert queue(selector) == queue(other)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_no_number_never_enters(shared: bool) -> None:
    selector = QueueSelector(0.5, 6, shared)
    update(selector, [1, NAN, 2, INF, -INF, 3])
    assert queue(selector) == [1, 2, 3]
    assert update(selector, [NAN, 5, 0.5]) == [5]
    assert queue(selector) == [1, 2, 3, 5, 0.5]
    assert update(selector, [NAN]) == [] and queue(selector) == [1, 2, 3, 5, 0.5]


@pytest.mark.parametrize("shared", [True, False])
def test_an_empty_batch_is_no_trouble(shared: bool) -> None:
    selector = QueueSelector(0.5, 6, shared, tags=[4])
    assert update(selector, []) == []
    update(selector, [1, 2], tag=4)
    assert update(selector, []) == []
    assert queue(selector, "4") == [1, 2]
    assert BatchSelector(0.5).select(torch.zeros(0), row_batch(0)).tolist() == []


@pytest.mark.parametrize("shared", [True, False])
def test_every_language_has_its_queue_and_its_gate(shared: bool) -> None:
    selector = QueueSelector(0.5, 4, shared, tags=[9, 6])
    # sentences of 3, 1, 2 and 1 tokens in languages 6, 9, none, 6
    batch = batch_of([[3, 3, 2], [2, PAD, PAD], [3, 2, PAD], [2, PAD, PAD]], [6, 9, 5, 6])
    selector.select(torch.tensor([1.0, 2, 3, 50, 70, 80, 4]), batch)
    selector.end_update(True)
    prefix = "" if shared else "rank0."
    state = {name: values.tolist() for name, values in selector.state().items()}
    assert state == {
        f"{prefix}queue.6": [1, 2, 3, 4],
        f"{prefix}queue.9": [50],
        f"{prefix}queue.all": [70, 80],
    }
    selector.training = False  # judged by the queues as they stand: selectors 3, 50 and 80
    nll = torch.tensor([2.9, 3, 51, 50, 79, 81, 3.1])
    assert selector.select(nll, batch).tolist() == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("shared", [True, False])
def test_it_continues_unchanged_after_save_and_restore(shared: bool) -> None:
    selectors = [QueueSelector(0.4, 20, shared, tags=[6, 9]) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)

    def batches() -> list[tuple[Tensor, int]]:
        return [(torch.rand(9, generator=generator), tag) for tag in (6, 9, 4, 6)]

    for nll, tag in batches():
        selectors[0].select(nll, row_batch(9, tag))
        selectors[0].end_update(True)
    selectors[1].load_state({name: values.clone() for name, values in selectors[0].state().items()})
    for nll, tag in batches():
        picked = [selector.select(nll, row_batch(9, tag)).tolist() for selector in selectors]
        assert picked[0] == picked[1] and 0 < len(picked[0]) < 9
        for selector in selectors:
            selector.end_update(True)
    torch.testing.assert_close(selectors[0].state(), selectors[1].state(), rtol=0, atol=0)


def test_a_state_is_no_view_of_what_still_changes() -> None:
    selector = QueueSelector(0.5, 3, shared=True)
    update(selector, [7, 8, 1])
    update(selector, [2, 3])
    state = selector.state()["queue.all"]
    update(selector, [4, 5])
    assert state.tolist() == [1, 2, 3] and state.untyped_storage().nbytes() == 12


def on_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr("ds_seq.criterions.selection.distributed.rank", lambda: rank)


def test_queues_of_ranks_go_to_other_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"rank{rank}.queue.all": torch.tensor([float(rank)]) for rank in range(2)}
    for rank, expected in enumerate([0.0, 1.0, 0.0, 1.0]):
        on_rank(monkeypatch, rank)
        selector = QueueSelector(0.5, 3, shared=False)
        selector.load_state(state)
        assert selector.state() == {f"rank{rank}.queue.all": torch.tensor([expected])}
    on_rank(monkeypatch, 1)
    selector = QueueSelector(0.5, 3, shared=True)
    selector.load_state(state)  # all ranks take the first one's, so that they agree
    assert selector.state() == {}  # and only the first writes it
    on_rank(monkeypatch, 0)
    assert queue(selector) == [0.0]


def test_a_shared_queue_is_restored_as_queues_per_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    on_rank(monkeypatch, 3)
    selector = QueueSelector(0.5, 2, shared=False)
    selector.load_state({"queue.all": torch.tensor([1.0, 2, 3]), "queue.77": torch.tensor([5.0])})
    # cut to this run's size; a language that is none here is let go
    assert selector.state().keys() == {"rank3.queue.all"} and queue(selector) == [2, 3]


def test_an_old_run_without_queues_starts_with_empty_ones() -> None:
    selector = QueueSelector(0.5, 4, shared=True)
    update(selector, [1, 2])
    selector.load_state({})
    assert queue(selector) == [] and update(selector, [0.1, 0.2]) == [0.1, 0.2]
