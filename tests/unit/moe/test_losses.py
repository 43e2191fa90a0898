"""Losses of the router as functions of its probabilities."""

from __future__ import annotations

import pytest
import torch

from ds_seq.moe.losses import budget_loss, expert_counts, load_balance_loss, router_z_loss
from tests.unit.moe.made import LOGITS


def test_the_worked_example_of_gshards_loss() -> None:
    probabilities = LOGITS.softmax(-1)
    counts = expert_counts(probabilities.argmax(-1), 4)
    assert counts.tolist() == [4, 1, 0, 1]
    loss = load_balance_loss(probabilities, counts, 6)
    torch.testing.assert_close(loss, torch.tensor(1.414368))


@pytest.mark.parametrize(
    ("probabilities", "counts", "expected"),
    [
        ([0.25, 0.25, 0.25, 0.25], [5, 5, 5, 5], 1.0),
        ([0.25, 0.25, 0.25, 0.25], [20, 0, 0, 0], 1.0),
        ([1.0, 0.0, 0.0, 0.0], [20, 0, 0, 0], 4.0),  # collapsed
        ([1 / 3, 1 / 3, 1 / 3, 0.0], [20, 20, 20, 0], 4 / 3),  # one expert idle with top-3
        ([0.0, 0.0, 0.0, 1.0], [20, 0, 0, 0], 0.0),
    ],
)
def test_load_balance_between_even_and_collapsed(
    probabilities: list[float], counts: list[int], expected: float
) -> None:
    rows = torch.tensor(probabilities).expand(20, 4)
    for num_choices in (sum(counts), torch.tensor(float(sum(counts)))):
        loss = load_balance_loss(rows, torch.tensor(counts), num_choices)
        torch.testing.assert_close(loss, torch.tensor(expected))


def test_load_balance_pulls_towards_idle_experts() -> None:
    logits = torch.zeros(6, 3, requires_grad=True)
    load_balance_loss(logits.softmax(-1), torch.tensor([6, 0, 0]), 6).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_router_z_is_the_mean_squared_log_partition() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 1.0], [0.5, 0.25, 0.25]]))
    partition = logits.logsumexp(-1, keepdim=True)
    expected = torch.tensor((torch.tensor(4.0).log() ** 2).item() / 2)
    torch.testing.assert_close(router_z_loss(partition), expected)


def test_the_budget_is_that_of_real_tokens() -> None:
    share = torch.tensor([[0.9, 0.5, 0.1], [0.7, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert budget_loss(share, mask, 0.3).item() == pytest.approx(0.55 - 0.3)
    assert budget_loss(share, mask, 0.8).item() == pytest.approx(0.8 - 0.55)
    assert budget_loss(share, None, 0.5).item() == pytest.approx(0.2)


def test_no_token_has_no_loss_and_no_bad_gradient() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    share = torch.zeros(1, 2, requires_grad=True)
    nobody = torch.zeros(1, 2, dtype=torch.bool)
    losses = [
        load_balance_loss(logits.softmax(-1), torch.zeros(3, dtype=torch.int64), 0),
        router_z_loss(logits.logsumexp(-1, keepdim=True)),
        budget_loss(share, nobody, 0.5),
    ]
    assert [loss.item() for loss in losses] == [0.0, 0.0, 0.0]
    sum(losses).backward()  # type: ignore[union-attr]
    assert share.grad is not None and share.grad.eq(0).all()


def test_counts_of_unused_experts_are_zero() -> None:
    assert expert_counts(torch.tensor([[2, 0], [2, 2]]), 4).tolist() == [1, 0, 3, 0]
    assert expert_counts(torch.zeros(0, 2, dtype=torch.int64), 3).tolist() == [0, 0, 0]
