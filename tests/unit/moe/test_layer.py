"""The whole layer: exact outputs and gradients, padding, capacity, weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ds_seq.modules.body import Context
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch
from ds_seq.moe.experts import Experts
from tests.unit.moe.made import (
    FFN,
    LOGITS,
    ROUTERS,
    D,
    E,
    all_experts,
    dense_twin,
    golden_layer,
    make_layer,
    make_router,
    plain_layer,
    right_padded,
)

LENGTHS = [5, 7, 1, 3]


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return states (B, T, D), mask (B, T) and tags (B, D)."""
    generator = torch.Generator().manual_seed(seed)
    mask = right_padded(LENGTHS)
    x = torch.randn(*mask.shape, D, generator=generator)
    return x, mask, torch.randn(len(LENGTHS), D, generator=generator)


# ---- what is computed


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("normalize", ["before_dropping", "after_dropping"])
def test_one_expert_is_a_dense_feed_forward(activation: str, normalize: str) -> None:
    layer = make_layer(num_experts=1, activation=activation, normalize_weights=normalize)
    x, mask, _ = batch()
    expected = dense_twin(layer.experts, 0)(x)[0]
    torch.testing.assert_close(layer(x)[0], expected)
    torch.testing.assert_close(layer(x, Context(mask))[0], expected * mask.unsqueeze(-1))


@pytest.mark.parametrize("router", ["softmax", "cosine", "sigmoid"])
def test_all_experts_are_their_weighted_sum(router: str) -> None:
    layer = make_layer(router, top_k=E, normalize_weights="after_dropping")
    x, _, _ = batch()
    weights = layer.gate(x.view(-1, D)).probabilities.view(*x.shape[:2], E)
    expected = (all_experts(layer.experts, x) * weights.unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 2, E])
@pytest.mark.parametrize("normalize", ["none", "after_dropping"])
def test_output_and_gradients_are_those_of_the_weighted_sum(
    router: str, top_k: int, normalize: str
) -> None:
    layer = make_layer(router, top_k, normalize_weights=normalize).double()
    x, mask, tag = (each.double() if each.is_floating_point() else each for each in batch())
    x.requires_grad_()
    y = layer(x, Context(mask, tag=tag))[0]

    answer = layer.gate(x.reshape(-1, D), mask.reshape(-1).nonzero().squeeze(1), x.shape[:2], tag)
    weights = answer.weights
    if normalize != "none":
        # of a single weight the sum is a constant: the gradient goes straight through
        total = weights.sum(-1, keepdim=True)
        weights = weights / (total.detach() if weights.shape[1] == 1 else total).clamp(min=1e-30)
    by_expert = torch.zeros_like(answer.probabilities).scatter_add(-1, answer.experts, weights)
    outputs = all_experts_with_graph(layer.experts, x)[mask]  # (N, E, D)
    rows = (outputs * by_expert.unsqueeze(-1)).sum(-2)
    expected = torch.zeros_like(x).masked_scatter(mask.unsqueeze(-1), rows)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)

    target = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((y * target).sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad((expected * target).sum(), inputs, allow_unused=True)
    for actual, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-6)


def all_experts_with_graph(experts: Experts, x: Tensor) -> Tensor:
    """Compute `all_experts` as a function of the parameters, however they are stored."""

    def along(matrix: Tensor, inputs: int) -> Tensor:
        return matrix if matrix.shape[0] == inputs else matrix.t()

    outputs = []
    for w1, b1, w2, b2 in zip(experts.w1, experts.b1, experts.w2, experts.b2, strict=True):
        hidden = torch.relu(x @ along(w1, D) + b1)
        outputs.append(hidden @ along(w2, FFN) + b2)
    return torch.stack(outputs, dim=-2)


def test_experts_differ_and_do_not_depend_on_the_layout() -> None:
    whole = Experts(D, FFN, 4, 0, "relu", 0.0, 3)
    assert not torch.equal(whole.w1[0], whole.w1[1])
    for rank in range(2):
        half = Experts(D, FFN, 2, 2 * rank, "relu", 0.0, 3)
        for name, parameter in half.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(name)[2 * rank : 2 * rank + 2])
    assert not torch.equal(whole.w1, Experts(D, FFN, 4, 0, "relu", 0.0, 4).w1)


@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_losses_and_statistics_can_be_left_out(kind: str) -> None:
    branch = ConditionalBranch(FeedForward(D, FFN, "relu", 0.0), D, 0.5, 0.0)
    layer = make_layer(branch=None if kind == "plain" else branch).eval()
    x, mask, _ = batch()
    whole, (brief, aux, _) = layer(x, Context(mask))[0], layer(x, Context(mask, with_aux=False))
    assert aux is None
    assert torch.equal(brief, whole)


# ---- independence


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_in_evaluation_a_sentence_does_not_depend_on_its_batch(
    router: str, top_k: int, seed: int
) -> None:
    options = {} if router == "expert_choice" else {"normalize_weights": "after_dropping"}
    layer = make_layer(router, top_k, seed=seed, capacity_factor=0.25, min_capacity=1, **options)
    layer.eval()
    x, mask, tag = batch(seed)
    together, aux, _ = layer(x, Context(mask, tag=tag))
    assert aux.stats.dropped.item() == 0
    wider = nn.functional.pad(torch.where(mask.unsqueeze(-1), x, 7.0), (0, 0, 0, 3), value=-5.0)
    padded = layer(wider, Context(nn.functional.pad(mask, (0, 3)), tag=tag))[0]
    for row, length in enumerate(LENGTHS):
        alone = layer(x[row : row + 1, :length], Context(tag=tag[row : row + 1]))[0][0]
        torch.testing.assert_close(together[row, :length], alone)
        torch.testing.assert_close(padded[row, :length], alone)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("drop", ["position", "probability"])
def test_padding_takes_no_place_and_counts_nowhere(router: str, drop: str) -> None:
    layer = make_layer(router, 2, capacity_factor=0.75, min_capacity=1, drop=drop).train()
    x, mask, tag = batch()
    y, aux, _ = layer(x, Context(mask, tag=tag))
    garbage = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 50.0))
    other, other_aux, _ = layer(garbage, Context(mask, tag=tag))
    torch.testing.assert_close(y, other)
    torch.testing.assert_close(aux.losses, other_aux.losses)
    torch.testing.assert_close(aux.stats._asdict(), other_aux.stats._asdict())
    assert not y[~mask].any()
    assert aux.stats.tokens.item() == sum(LENGTHS)
    if router != "expert_choice":
        assert aux.stats.load.sum().item() == 2 * sum(LENGTHS)
    assert aux.stats.dropped.item() > 0


@pytest.mark.parametrize("router", ROUTERS)
def test_no_token_at_all(router: str) -> None:
    layer = make_layer(router, capacity_factor=1.0).train()
    x = torch.randn(1, 2, D, requires_grad=True)
    y, aux, _ = layer(x, Context(torch.zeros(1, 2, dtype=torch.bool), tag=torch.randn(1, D)))
    (y.sum() + sum(aux.losses.values())).backward()
    assert torch.equal(y, torch.zeros_like(y)) and x.grad is not None
    assert all(not p.grad.any() for p in layer.parameters() if p.grad is not None)


# ---- capacity


def test_capacity_drops_the_last_tokens_of_a_full_expert() -> None:
    layer = golden_layer(capacity_factor=1.0, min_capacity=0)
    y, aux, _ = layer(LOGITS.unsqueeze(0))
    assert (y[0].sum(-1) > 0).tolist() == [True, True, True, False, True, False]
    assert aux.stats.dropped.item() == 2
    assert aux.stats.load.tolist() == [4, 1, 0, 1]
    torch.testing.assert_close(aux.losses["load_balance"], torch.tensor(1.414368))


def test_top_2_weights_of_the_worked_example() -> None:
    layer = golden_layer(2, capacity_factor=1.0, min_capacity=0, normalize_weights="after_dropping")
    y, aux, _ = layer(LOGITS.unsqueeze(0))
    # tokens 2 and 5 lose one of their two experts; the other one gets all the weight
    expected = torch.tensor(
        [
            [0.880797, 0.119203, 0, 0],
            [0.622459, 0, 0.377541, 0],
            [0, 1, 0, 0],
            [0.622459, 0.377541, 0, 0],
            [0, 0, 0.377541, 0.622459],
            [0, 0, 0, 1],
        ]
    )
    torch.testing.assert_close(y[0], expected, rtol=1e-5, atol=1e-5)
    assert aux.stats.dropped.item() == 2


def test_weights_scaled_before_dropping_lose_what_is_dropped() -> None:
    layer = golden_layer(
        2, capacity_factor=1.0, min_capacity=0, normalize_weights="before_dropping"
    )
    y = layer(LOGITS.unsqueeze(0))[0][0]
    torch.testing.assert_close(y[0, :2], torch.tensor([0.880797, 0.119203]), rtol=1e-5, atol=1e-5)
    assert y[5].nonzero().squeeze(1).tolist() == [3]
    assert y[5, 3].item() == pytest.approx(0.182426, abs=1e-5)  # e / (e^2.5 + e)


def test_raw_weights_are_probabilities() -> None:
    y = golden_layer(2)(LOGITS.unsqueeze(0))[0][0]
    probabilities = LOGITS.softmax(-1)
    best = probabilities.topk(2, dim=-1).values
    torch.testing.assert_close(y.sum(-1), best.sum(-1))
    assert ((y == 0) | torch.isclose(y, probabilities)).all()


def test_by_probability_the_surest_tokens_keep_their_place() -> None:
    logits = LOGITS.clone()
    logits[0, 0] = 0.9  # now tokens 5 and 1 are the surest of expert 0
    layer = golden_layer(capacity_factor=1.0, min_capacity=0, drop="probability")
    y = layer(logits.unsqueeze(0))[0][0]
    assert (y.sum(-1) > 0).tolist() == [False, True, True, False, True, True]


def test_random_selection_is_for_training_only() -> None:
    settings = {"capacity_factor": 1.0, "eval_capacity_factor": 1.0, "min_capacity": 0}
    layer = golden_layer(drop="random", **settings)
    x = LOGITS.unsqueeze(0)
    torch.manual_seed(0)
    outcomes = {tuple((layer(x)[0][0].sum(-1) > 0).tolist()) for _ in range(100)}
    assert len(outcomes) == 6  # two of the four tokens that choose expert 0
    layer.eval()
    expected = golden_layer(**settings).eval()(x)[0]
    assert all(torch.equal(layer(x)[0], expected) for _ in range(10))


def test_capacity_in_evaluation_if_requested() -> None:
    layer = golden_layer(eval_capacity_factor=1.0, min_capacity=0)
    assert layer(LOGITS.unsqueeze(0))[1].stats.dropped.item() == 0
    assert layer.eval()(LOGITS.unsqueeze(0))[1].stats.dropped.item() == 2


# ---- weights


@pytest.mark.parametrize("normalize", ["before_dropping", "after_dropping"])
def test_with_one_expert_the_gradient_goes_straight_through(normalize: str) -> None:
    layer = golden_layer(normalize_weights=normalize)
    x = LOGITS.unsqueeze(0)
    y = layer(x)[0]
    torch.testing.assert_close(y.sum(-1), torch.ones(1, 6))
    (gradient,) = torch.autograd.grad(y.sum(), layer.gate.weight)
    best = (x @ layer.gate.weight.t()).softmax(-1).amax(-1)
    (expected,) = torch.autograd.grad((best / best.detach()).sum(), layer.gate.weight)
    torch.testing.assert_close(gradient, expected)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize(
    ("normalize", "alone"), [("none", 0.5), ("before_dropping", 0.625), ("after_dropping", 1.0)]
)
def test_a_second_expert_that_is_left_out_by_chance(normalize: str, alone: float) -> None:
    """GShard's random policy: the first expert's weight if the second one is not visited."""
    by_share = normalize == "before_dropping"
    layer = golden_layer(
        2,
        normalize_weights=normalize,
        chance={"second_expert": "random", "second_by_share": by_share},
    )
    probabilities = torch.tensor([0.5, 0.3, 0.1, 0.1])
    torch.manual_seed(0)
    y, aux, _ = layer(probabilities.log().expand(1, 2000, 4))
    left_out = y[0, :, 1] == 0
    expected_share = 1 - 2 * (0.375 if by_share else 0.3)
    assert left_out.float().mean().item() == pytest.approx(expected_share, abs=0.04)
    torch.testing.assert_close(y[0, left_out, 0], torch.full((int(left_out.sum()),), alone))
    both = y[0, ~left_out]
    total = 0.8 if normalize == "none" else 1.0
    torch.testing.assert_close(both.sum(-1), torch.full((len(both),), total))
    assert aux.stats.dropped.item() == 0
    assert aux.stats.load.tolist() == [2000, len(both), 0, 0]


def test_output_masking_leaves_out_single_experts_in_training() -> None:
    layer = golden_layer(2, output_masking=0.3)
    x = LOGITS.repeat(200, 1).unsqueeze(0)
    plain = layer.eval()(x)[0]
    masked = layer.train()(x)[0]
    chosen = plain > 0
    torch.testing.assert_close(masked[chosen & (masked > 0)], plain[chosen & (masked > 0)])
    assert not masked[~chosen].any()
    assert (masked[chosen] == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
    per_token = (masked[0] > 0).sum(-1)  # each expert for itself: 0.09, 0.42 and 0.49
    shares = torch.bincount(per_token, minlength=3) / len(per_token)
    torch.testing.assert_close(shares, torch.tensor([0.09, 0.42, 0.49]), rtol=0.0, atol=0.06)


# ---- construction


def test_what_cannot_be_is_refused() -> None:
    experts = Experts(D, FFN, 3, 0, "relu", 0.0, 1)
    with pytest.raises(ValueError, match="3 local experts do not divide 4"):
        plain_layer(make_router(), experts)
    with pytest.raises(ValueError, match="one of position, probability, random"):
        make_layer(drop="last")
    with pytest.raises(ValueError, match="one of none, before_dropping, after_dropping"):
        make_layer(normalize_weights="yes")


def test_spread_experts_need_their_group() -> None:
    layer = plain_layer(make_router(), Experts(D, FFN, 2, 0, "relu", 0.0, 1))
    assert layer.expert_parallel == 2
    with pytest.raises(RuntimeError, match="connect_expert_parallel"):
        layer(torch.randn(1, 2, D))
