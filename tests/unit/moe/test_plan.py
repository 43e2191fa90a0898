"""Dispatch plans against a loop over tokens, and the policies of dropping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq.moe.dispatch import run_experts, spread
from ds_seq.moe.experts import Experts
from ds_seq.moe.plan import DispatchPlan, make_plan, priorities
from ds_seq.moe.router import Routing
from tests.unit.moe.made import LOGITS

E = 5


def kept_by_a_loop(
    experts: Tensor, capacity: int | None, priority: Tensor | None, valid: Tensor | None
) -> Tensor:
    """Return the kept assignments (N, K) bool, by a loop over assignments."""
    num_tokens, top_k = experts.shape
    kept = torch.zeros(num_tokens, top_k, dtype=torch.bool)
    taken = [0] * E
    value = [0.0] * num_tokens if priority is None else priority.tolist()
    queue = sorted(range(num_tokens), key=lambda token: (-value[token], token))
    for choice in range(top_k):
        for token in queue:
            expert = int(experts[token, choice])
            if valid is not None and not valid[token, choice]:
                continue
            if capacity is None or taken[expert] < capacity:
                taken[expert] += 1
                kept[token, choice] = True
    return kept


def assert_consistent(plan: DispatchPlan, experts: Tensor) -> None:
    """Assert that all fields of a plan agree."""
    num_rows, top_k = plan.token.numel(), experts.shape[1]
    owners = experts.reshape(-1)[plan.assignment]
    assert torch.equal(owners, owners.sort().values)
    assert torch.equal(plan.counts, torch.bincount(owners, minlength=E))
    assert torch.equal(plan.token, plan.assignment // top_k)
    assert torch.equal(plan.slot.reshape(-1)[plan.assignment], torch.arange(num_rows))
    assert plan.kept.sum() == num_rows
    assert plan.kept.reshape(-1)[plan.assignment].all()
    assert not plan.slot[~plan.kept].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("capacity", [None, 0, 2, 4, 100])
@pytest.mark.parametrize("has_priority", [False, True])
@pytest.mark.parametrize("has_valid", [False, True])
def test_a_plan_is_what_a_loop_over_tokens_finds(
    seed: int, top_k: int, capacity: int | None, has_priority: bool, has_valid: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(11, E, generator=generator).argsort(dim=-1)[:, :top_k]
    # few different values: equal ones must go by position
    priority = torch.randint(3, (11,), generator=generator).float() if has_priority else None
    valid = torch.rand(11, top_k, generator=generator) < 0.6 if has_valid else None
    plan = make_plan(experts, E, capacity, priority, valid)
    assert torch.equal(plan.kept, kept_by_a_loop(experts, capacity, priority, valid))
    assert_consistent(plan, experts)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("capacity", [0, 2, 4, 100])
@pytest.mark.parametrize("has_priority", [False, True])
def test_marking_dropped_assignments_is_as_good_as_removing_them(
    top_k: int, capacity: int, has_priority: bool
) -> None:
    """On a GPU, all assignments keep a row, and the same ones count."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(11, E, generator=generator).argsort(dim=-1)[:, :top_k]
    priority = torch.randint(3, (11,), generator=generator).float() if has_priority else None
    experts, real = Experts(8, 16, E, 0, "gelu", 0.0, seed=1), torch.arange(1, 12)
    results = []
    for mark_only in (False, True):
        plan = make_plan(chosen, E, capacity, priority, mark_only=mark_only)
        assert plan.counts.sum() == (11 * top_k if mark_only else plan.kept.sum())
        x = torch.randn(12, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
        weights = torch.rand(11, top_k, generator=torch.Generator().manual_seed(3))
        weights = (weights * plan.kept).requires_grad_()
        full = weights.new_zeros(12, top_k).index_copy(0, real, weights)
        y = run_experts(x, full, spread(plan, real, 12), experts, None)
        inputs = [x, *experts.parameters()]
        gradients = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
        results.append([plan.kept, y, *gradients])
    for marked, removed in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(marked, removed)


def test_more_experts_than_sixteen_bits_can_count() -> None:
    experts = torch.tensor([[70_000], [3], [70_000], [40_000]])
    plan = make_plan(experts, 70_001, 1)
    assert plan.token.tolist() == [1, 3, 0]
    assert plan.kept.squeeze(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("capacity", [None, 3])
@pytest.mark.parametrize("has_valid", [False, True])
def test_no_token_at_all(capacity: int | None, has_valid: bool) -> None:
    valid = torch.zeros(0, 2, dtype=torch.bool) if has_valid else None
    experts = torch.zeros(0, 2, dtype=torch.int64)
    plan = make_plan(experts, E, capacity, torch.zeros(0), valid)
    assert plan.counts.tolist() == [0] * E
    assert_consistent(plan, experts)


def routing(top_k: int, valid: Tensor | None = None) -> Routing:
    probabilities = LOGITS.softmax(-1)
    weights, experts = probabilities.topk(top_k, dim=-1)
    return Routing(experts, weights, probabilities, {}, valid)


def test_by_probability_the_surest_tokens_stay() -> None:
    # expert 0 has two places; tokens 0, 1, 3 and 5 want it with .71, .47, .40 and .71
    answer = routing(1)
    plan = make_plan(answer.experts, 4, 2, priorities(answer, "probability"))
    surest = answer.weights[[0, 1, 3, 5], 0].argsort(descending=True)[:2]
    stay = sorted([2, 4, *(torch.tensor([0, 1, 3, 5])[surest].tolist())])
    assert plan.kept.squeeze(1).nonzero().squeeze(1).tolist() == stay
    assert 1 not in stay and 3 not in stay


def test_first_choices_go_before_second_ones_however_sure() -> None:
    experts = torch.tensor([[0, 1], [1, 0]])
    probabilities = torch.tensor([[0.51, 0.49], [0.1, 0.9]])
    answer = Routing(experts, torch.tensor([[0.51, 0.49], [0.9, 0.1]]), probabilities, {})
    plan = make_plan(experts, 2, 1, priorities(answer, "probability"))
    assert plan.kept.tolist() == [[True, False], [True, False]]


def test_a_choice_that_does_not_exist_gives_no_priority() -> None:
    valid = torch.ones(6, 1, dtype=torch.bool)
    valid[2] = False
    priority = priorities(routing(1, valid), "probability")
    assert priority is not None and priority[2] == 0.0 and (priority > 0).sum() == 5


def test_by_position_nothing_has_to_be_sorted() -> None:
    assert priorities(routing(1), "position") is None


def test_random_selection_treats_tokens_alike() -> None:
    torch.manual_seed(0)
    answer, draws = routing(1), 600
    kept = torch.zeros(6)
    for _ in range(draws):
        kept += make_plan(answer.experts, 4, 2, priorities(answer, "random")).kept.squeeze(1)
    share = kept / draws
    assert share[[2, 4]].tolist() == [1.0, 1.0]
    torch.testing.assert_close(share[[0, 1, 3, 5]], torch.full((4,), 0.5), rtol=0.0, atol=0.1)
