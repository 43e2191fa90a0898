"""The softmax router: its choices, its randomness in training, and its arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ds_seq.moe.choice import SoftmaxChoice, best
from ds_seq.moe.router import SoftmaxRouter, expert_capacity, normalized
from tests.unit.moe.made import LOGITS, D, E, make_choice, make_router

DRAWS = 20_000
CHANCES: list[dict[str, Any]] = [
    {"noise": "jitter"},
    {"noise": "gumbel"},
    {"second_expert": "sampled"},
    {"second_expert": "random"},
]


def drawn(logits: list[float], choice: SoftmaxChoice) -> Any:
    """Route many tokens with the same logits in training."""
    torch.manual_seed(0)
    return choice(torch.tensor(logits).expand(DRAWS, -1), training=True)


def shares(ids: torch.Tensor, num_experts: int) -> torch.Tensor:
    return torch.bincount(ids, minlength=num_experts) / len(ids)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_best_is_what_sorting_says(k: int) -> None:
    scores = torch.randn(50, E + 3, generator=torch.Generator().manual_seed(k))
    assert torch.equal(best(scores, k), scores.argsort(dim=-1, descending=True)[:, :k])


@pytest.mark.parametrize("k", [1, 2])
def test_equal_scores_go_to_the_lower_expert(k: int) -> None:
    assert best(torch.zeros(9, 64), k).tolist() == [list(range(k))] * 9


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_weights_are_probabilities_of_the_best(top_k: int) -> None:
    gate, x = make_router(top_k=top_k), torch.randn(30, D)
    expected = (x @ gate.weight.t()).softmax(-1)
    answer = gate(x)
    torch.testing.assert_close(answer.probabilities, expected)
    torch.testing.assert_close(answer.weights, expected.sort(dim=-1, descending=True)[0][:, :top_k])
    torch.testing.assert_close(answer.weights, expected.gather(-1, answer.experts))
    assert answer.valid is None


@pytest.mark.parametrize("rows", [3, 300])  # two kernels
def test_only_the_requested_rows_are_routed(rows: int) -> None:
    gate, x = make_router(top_k=2), torch.randn(rows, D)
    real = torch.arange(0, rows, 2)
    some, alone = gate(x, real), gate(x[real])
    assert torch.equal(some.experts, alone.experts)
    torch.testing.assert_close(some.probabilities, alone.probabilities)
    torch.testing.assert_close(some.losses, alone.losses)


def test_half_precision_computes_in_float32() -> None:
    gate, x = make_router(top_k=2), torch.randn(32, D).bfloat16()
    exact = gate(x.float()).probabilities
    rounded = gate.bfloat16()(x).probabilities
    assert rounded.dtype == torch.float32
    # only the parameters were rounded
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("chance", CHANCES)
def test_chance_takes_part_in_training_only(chance: dict[str, Any]) -> None:
    gate, x = make_router(top_k=2, chance=chance), torch.randn(64, D)
    torch.manual_seed(1)
    first, second = gate.train()(x), gate(x)
    assert any(
        a is not None and not torch.equal(a, b)
        for a, b in zip(
            (first.experts, first.weights, first.valid),
            (second.experts, second.weights, second.valid),
            strict=True,
        )
    )
    state = torch.get_rng_state()
    plain = SoftmaxRouter(D, E, make_choice(2), "rank").eval()
    plain.load_state_dict(gate.state_dict())
    torch.set_rng_state(state)
    answer, expected = gate.eval()(x), plain(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(answer.experts, expected.experts) and answer.valid is None
    assert torch.equal(answer.weights, expected.weights)


def test_gumbel_noise_samples_the_softmax_and_leaves_the_weights() -> None:
    logits = [1.0, 0.0, -1.0, 0.5]
    probabilities = torch.tensor(logits).softmax(-1)
    choice = drawn(logits, make_choice(2, noise="gumbel"))
    torch.testing.assert_close(shares(choice.experts[:, 0], 4), probabilities, rtol=0.0, atol=0.015)
    torch.testing.assert_close(choice.weights, probabilities[choice.experts])
    assert (choice.experts[:, 0] != choice.experts[:, 1]).all()


def test_jitter_moves_the_input_by_at_most_a_hundredth() -> None:
    torch.manual_seed(0)
    moved = make_choice(1, noise="jitter").inputs(torch.ones(100, 100), training=True)
    assert 0.99 <= moved.min() < 0.991 and 1.009 < moved.max() <= 1.01


def test_a_sampled_second_expert_follows_the_softmax_of_the_others() -> None:
    logits = [2.0, 1.0, 0.0, 0.5]
    choice = drawn(logits, make_choice(2, second_expert="sampled"))
    assert (choice.experts[:, 0] == 0).all()
    others = torch.tensor([float("-inf"), *logits[1:]]).softmax(-1)
    torch.testing.assert_close(shares(choice.experts[:, 1], 4), others, rtol=0.0, atol=0.015)


@pytest.mark.parametrize(
    ("by_share", "probabilities", "kept"),
    [
        (False, [0.6, 0.2, 0.1, 0.1], 0.4),
        (True, [0.6, 0.2, 0.1, 0.1], 0.5),
        (False, [0.45, 0.25, 0.2, 0.1], 0.5),
        (True, [0.3, 0.3, 0.2, 0.2], 1.0),
        (False, [0.5, 0.5, 0.0, 0.0], 1.0),
    ],
)
def test_a_random_second_expert_is_kept_with_twice_its_weight(
    by_share: bool, probabilities: list[float], kept: float
) -> None:
    logits = torch.tensor(probabilities).log().tolist()
    choice = drawn(logits, SoftmaxChoice(2, "none", "random", by_share))
    assert choice.valid[:, 0].all()
    assert choice.valid[:, 1].float().mean().item() == pytest.approx(kept, abs=0.015)
    assert choice.experts.unique(dim=0).tolist() == [[0, 1]]


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1.414368), (2, 1.414368)])
def test_load_balance_counts_first_choices_of_one_or_two(top_k: int, expected: float) -> None:
    gate = make_router(top_k=top_k, d_model=4)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(4))
    torch.testing.assert_close(gate(LOGITS).losses["load_balance"], torch.tensor(expected))


def test_load_balance_counts_all_choices_of_three() -> None:
    gate = make_router(top_k=3, d_model=4)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(4))
    logits = torch.tensor([[3.0, 2, 1, 0], [3, 2, 0, 1], [0, 3, 2, 1], [1, 3, 0, 2]])
    # expert 0 is among the best three of 3 tokens, expert 1 of 4, expert 2 of 2, expert 3 of 3
    share = torch.tensor([3.0, 4, 2, 3]) / 12
    expected = 4 * (logits.softmax(-1).mean(0) * share).sum()
    torch.testing.assert_close(gate(logits).losses["load_balance"], expected)


@pytest.mark.parametrize("load_balance", ["rank", "global"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_balanced_routing_has_load_balance_one(top_k: int, load_balance: str) -> None:
    gate = make_router(top_k=top_k, d_model=4, load_balance=load_balance).train()
    with torch.no_grad():
        gate.weight.copy_(torch.eye(4))
    # each expert is as often the first, the second, and so on
    logits = torch.stack([torch.tensor([9.0, 6, 3, 0]).roll(shift) for shift in range(4)])
    torch.testing.assert_close(gate(logits).losses["load_balance"], torch.tensor(1.0))


def test_router_z_is_that_of_the_logits() -> None:
    gate = make_router(top_k=2)
    x = torch.randn(20, D)
    expected = F.linear(x, gate.weight).logsumexp(-1).square().mean()
    torch.testing.assert_close(gate(x).losses["router_z"], expected)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "factor", "minimum", "expected"),
    [
        (100, 8, 1, 1.0, 4, 13),
        (100, 8, 1, 4.0, 4, 50),
        (100, 8, 2, 1.0, 4, 25),
        (10, 8, 1, 1.0, 4, 4),
        (10, 8, 1, 1.0, 0, 2),
        (10, 8, 1, 4.0, 4, 5),
        (10, 8, 2, 1.0, 4, 4),
        (7, 8, 1, 1.0, 0, 1),
        (7, 8, 1, 1.0, 4, 4),
        (7, 8, 1, 4.0, 4, 4),
        (4096, 8, 1, 1.0, 4, 512),
        (4096, 8, 1, 4.0, 4, 2048),
        (4096, 8, 2, 1.0, 4, 1024),
        (4096, 8, 4, 1.0, 4, 2048),
        (5, 2, 1, 1.0, 0, 3),
        (5, 2, 1, 4.0, 0, 5),  # not 10: there are no more tokens
        (5, 2, 2, 1.0, 0, 5),
        (2, 8, 1, 1.0, 4, 2),
        (0, 8, 1, 1.0, 4, 0),
        (100, 8, 1, None, 4, None),
    ],
)
def test_capacity(
    tokens: int, experts: int, top_k: int, factor: float | None, minimum: int, expected: int | None
) -> None:
    assert expert_capacity(tokens, experts, top_k, factor, minimum) == expected


def test_normalized_weights_sum_to_one_where_any_is_left() -> None:
    weights = torch.tensor([[0.3, 0.1], [0.0, 0.2], [0.0, 0.0]])
    expected = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(normalized(weights), expected)


@pytest.mark.parametrize("gap", [20.0, 45.0, 80.0, 86.0, 88.0, 100.0, 1e4])
def test_a_saturated_router_gets_a_finite_gradient(gap: float) -> None:
    logits = torch.tensor([[gap, 0.0, 0.0, -1.0], [0.0, -1.0, -2.0, -gap]], requires_grad=True)
    # the first choice of the first token is dropped, so that only improbable ones are left
    kept = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    weights = normalized(logits.softmax(-1) * kept)
    expected = (logits.detach().double() + kept.log()).softmax(-1)
    exact = torch.tensor([gap < 87.0, True])  # beyond, the probabilities are no normal numbers
    torch.testing.assert_close(weights[exact].double(), expected[exact], rtol=1e-3, atol=0)
    (weights * torch.tensor([1e4, -1e4, 1.0, 3e4])).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[1].abs().max() > 1.0


def test_a_single_weight_is_one_and_keeps_a_gradient() -> None:
    weights = torch.tensor([[0.2], [0.5], [0.0]], requires_grad=True)
    ones = normalized(weights)
    assert ones.squeeze(1).tolist() == [1.0, 1.0, 0.0]
    ones[:2].sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad.squeeze(1), torch.tensor([5.0, 2.0, 0.0]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": "nois"}, "one of none, jitter, gumbel"),
        ({"second_expert": "other"}, "one of always, sampled, random"),
        ({"second_expert": "random", "top_k": 3}, "needs top_k 2, not 3"),
    ],
)
def test_unknown_policies_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_choice(**{"top_k": 2, **arguments})


def test_a_gate_cannot_choose_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="between 1 and num_experts=4"):
        SoftmaxRouter(D, 4, make_choice(5), "rank")
    with pytest.raises(ValueError, match="one of rank, global"):
        SoftmaxRouter(D, 4, make_choice(1), "world")
