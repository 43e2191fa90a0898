"""Properties of all routers, and of each single one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ds_seq.moe.cosine import CosineRouter
from ds_seq.moe.expert_choice import ExpertChoiceRouter
from ds_seq.moe.router import Router, Routing
from tests.unit.moe.made import ROUTERS, D, E, make_router, right_padded

LENGTHS = [5, 7, 1, 3]


def sentences(seed: int, lengths: list[int] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """Return states (B, T, D), mask (B, T) and tags (B, D)."""
    torch.manual_seed(seed)
    mask = right_padded(lengths)
    return torch.randn(*mask.shape, D), mask, torch.randn(len(lengths), D)


def route(router: Router, x: Tensor, mask: Tensor, tag: Tensor) -> Routing:
    """Route as a layer does."""
    real = None if mask.all() else mask.reshape(-1).nonzero().squeeze(1)
    answer: Routing = router(x.reshape(-1, D), real, (x.shape[0], x.shape[1]), tag)
    return answer


def weight_of_experts(answer: Routing) -> Tensor:
    """Return the weight (N, E) of each expert for each token."""
    weights = answer.weights if answer.valid is None else answer.weights * answer.valid
    empty = torch.zeros_like(answer.probabilities)
    return empty.scatter_add(-1, answer.experts, weights)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_sentence_is_routed_alike_alone_and_in_any_batch(
    name: str, top_k: int, seed: int
) -> None:
    x, mask, tag = sentences(seed)
    router = make_router(name, top_k).eval()
    together = weight_of_experts(route(router, x, mask, tag)).split(LENGTHS)
    garbage = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 40.0))
    wider = torch.cat([garbage, garbage[:, :2]], dim=1)
    padded = nn.functional.pad(mask, (0, 2))
    padded = weight_of_experts(route(router, wider, padded, tag)).split(LENGTHS)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = weight_of_experts(route(router, x[one, :length], mask[one, :length], tag[one]))
        torch.testing.assert_close(together[row], alone)
        torch.testing.assert_close(padded[row], alone)


@pytest.mark.parametrize("name", ROUTERS)
def test_padding_counts_in_no_loss(name: str) -> None:
    x, mask, tag = sentences(1)
    router = make_router(name, 2)
    garbage = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 40.0))
    answer, other = route(router, x, mask, tag), route(router, garbage, mask, tag)
    torch.testing.assert_close(answer.losses, other.losses)
    assert answer.probabilities.shape == (sum(LENGTHS), E)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 3])
def test_answers_are_well_formed(name: str, top_k: int) -> None:
    router = make_router(name, top_k)
    answer = route(router, *sentences(2))
    assert answer.experts.dtype == torch.int64 and answer.experts.shape == answer.weights.shape
    assert 0 <= answer.experts.min() and answer.experts.max() < E
    assert all(len(set(row)) == len(row) for row in answer.experts.tolist())
    torch.testing.assert_close(answer.probabilities.sum(-1), torch.ones(sum(LENGTHS)))
    assert (answer.weights >= 0).all() and (answer.weights <= 1).all()
    names = {"router_z"} if name == "expert_choice" else {"load_balance", "router_z"}
    assert answer.losses.keys() == names
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in answer.losses.values())
    if name != "expert_choice":
        assert answer.experts.shape[1] == top_k and answer.valid is None
    assert f"num_experts={E}, top_k={top_k}" in repr(router)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        (name, term)
        for name in ROUTERS
        for term in ("weights", "load_balance", "router_z")
        if (name, term) != ("expert_choice", "load_balance")  # it has none
    ],
)
def test_every_parameter_learns_from_every_term(name: str, term: str) -> None:
    router, (x, mask, tag) = make_router(name, 2), sentences(3)
    answer = route(router, x.requires_grad_(), mask, tag.requires_grad_())
    value = weight_of_experts(answer).square().sum() if term == "weights" else answer.losses[term]
    value.backward()
    for part, parameter in router.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, part
    source = tag if name == "language" else x
    assert source.grad is not None and source.grad.abs().max() > 0
    if name != "language":
        assert x.grad is not None and not x.grad[~mask].any()


@pytest.mark.parametrize("name", ROUTERS)
def test_no_token_at_all(name: str) -> None:
    router, (x, mask, tag) = make_router(name, 2), sentences(4)
    answer = route(router, x.requires_grad_(), torch.zeros_like(mask), tag)
    assert len(answer.experts) == 0
    assert all(loss.item() == 0.0 for loss in answer.losses.values())
    (answer.weights.sum() + sum(answer.losses.values())).backward()
    for parameter in router.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("name", ROUTERS)
def test_losses_can_be_left_out(name: str) -> None:
    router, (x, mask, tag) = make_router(name, 2), sentences(4)
    whole = route(router, x, mask, tag)
    real = mask.reshape(-1).nonzero().squeeze(1)
    brief = router(x.reshape(-1, D), real, (x.shape[0], x.shape[1]), tag, with_losses=False)
    assert brief.losses == {}
    assert torch.equal(brief.experts, whole.experts) and torch.equal(brief.weights, whole.weights)


@pytest.mark.parametrize("name", ROUTERS)
def test_half_precision_parameters_route_in_float32(name: str) -> None:
    router, (x, mask, tag) = make_router(name, 2), sentences(5)
    exact = route(router, x, mask, tag).probabilities
    answer = route(router.half(), x.half(), mask, tag.half())
    assert answer.weights.dtype == answer.probabilities.dtype == torch.float32
    torch.testing.assert_close(answer.probabilities, exact, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_without_some_experts_routes_as_if_they_were_not_there(name: str) -> None:
    """Pruning relies on `expert_tensors` to name all tensors with one row per expert."""
    x, mask, tag = sentences(6)
    router, kept = make_router(name, 1, num_experts=5), [0, 1, 3]
    smaller = make_router(name, 1, num_experts=3)
    state = router.state_dict()
    assert set(router.expert_tensors) <= state.keys()
    for part in state:
        if part in router.expert_tensors:
            assert len(state[part]) == 5
            state[part] = state[part][kept]
    smaller.load_state_dict(state)
    if name in ("cosine", "sigmoid"):
        expected = route(router, x, mask, tag).probabilities[:, kept]
        expected = expected / expected.sum(-1, keepdim=True)
    else:
        logits = (tag if name == "language" else x) @ router.weight[kept].t()
        logits = logits.unsqueeze(1).expand(-1, mask.shape[1], -1) if name == "language" else logits
        expected = logits[mask].softmax(-1)
    torch.testing.assert_close(route(smaller, x, mask, tag).probabilities, expected)


@pytest.mark.parametrize("name", ROUTERS)
def test_reset_draws_everything_anew(name: str) -> None:
    router = make_router(name, 1)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.fill_(math.nan)
    before = torch.random.get_rng_state()
    router.draw_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in router.parameters())
    first = {part: value.clone() for part, value in router.state_dict().items()}
    torch.random.set_rng_state(before)
    router.draw_parameters()
    assert all(torch.equal(first[part], value) for part, value in router.state_dict().items())


# ---- cosine


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [10.0, 1e-3])
def test_cosine_does_not_see_the_length_of_hidden_states(seed: int, factor: float) -> None:
    x, mask, tag = sentences(seed, [50, 60])
    router = make_router("cosine", 2)
    answer, scaled = route(router, x, mask, tag), route(router, x * factor, mask, tag)
    assert torch.equal(answer.experts, scaled.experts)
    torch.testing.assert_close(answer.weights, scaled.weights)


def test_cosine_scores_lie_between_minus_one_and_one() -> None:
    torch.manual_seed(0)
    router = CosineRouter(D, E, make_router().choice, router_dim=5, load_balance="rank")
    with torch.no_grad():
        router.embeddings.mul_(100.0)
    scores = router.scores(torch.randn(500, D) * 30)
    assert scores.abs().max() <= 1 + 1e-6
    assert scores.min() < -0.5 and scores.max() > 0.5
    # a token that lies on an expert's direction scores 1 there
    aligned = torch.linalg.lstsq(router.projection, router.embeddings.t()).solution.t()
    torch.testing.assert_close(router.scores(aligned).diagonal(), torch.ones(E))


def test_cosine_divides_by_a_learned_temperature() -> None:
    router, (x, mask, tag) = make_router("cosine"), sentences(0)
    torch.testing.assert_close(router.temperature, torch.tensor([0.07]))
    scores = router.scores(x)[mask]
    expected = (scores / 0.07).softmax(-1)
    torch.testing.assert_close(route(router, x, mask, tag).probabilities, expected)


def test_the_temperature_has_a_floor_from_which_it_comes_back() -> None:
    router = make_router("cosine")
    learned = router.log_temperature

    def learn(sign: float, updates: int) -> float:
        for _ in range(updates):
            (gradient,) = torch.autograd.grad(sign * router.temperature.sum(), learned)
            with torch.no_grad():
                learned.sub_(0.05 * gradient.sign())  # as far as Adam goes, however small it is
        return router.temperature.item()

    assert 0.01 <= learn(1.0, 200) < 0.0101  # pressed against the floor for long
    assert learn(-1.0, 300) > 0.05


@pytest.mark.parametrize(("num_experts", "dim"), [(4, 16), (32, 16), (64, 32)])
def test_the_small_space_grows_with_the_experts(num_experts: int, dim: int) -> None:
    assert make_router("cosine", num_experts=num_experts).projection.shape == (dim, D)
    assert make_router("cosine", num_experts=num_experts, router_dim=3).embeddings.shape[1] == 3


# ---- sigmoid


def test_sigmoid_weights_are_scores_without_the_bias_that_chose() -> None:
    router, (x, mask, tag) = make_router("sigmoid", 2), sentences(0)
    plain = route(router, x, mask, tag)
    router.bias_steps[3] = 5000  # times 0.001: above any score
    biased = route(router, x, mask, tag)
    assert (biased.experts[:, 0] == 3).all()
    assert torch.equal(biased.experts[:, 1], _best_other_than(3, plain.probabilities))
    scores = (x[mask] @ router.weight.t()).sigmoid()
    torch.testing.assert_close(biased.weights, scores.gather(-1, biased.experts))
    torch.testing.assert_close(biased.probabilities, scores / scores.sum(-1, keepdim=True))
    torch.testing.assert_close(biased.probabilities, plain.probabilities)


def _best_other_than(expert: int, probabilities: Tensor) -> Tensor:
    others = probabilities.clone()
    others[:, expert] = -1.0
    return others.argmax(-1)


def test_the_bias_counts_steps_and_survives_half_precision() -> None:
    router = make_router("sigmoid", bias_rate=0.001)
    router.bias_steps += torch.tensor([501, 500, -3, 0])
    for half in (router.bfloat16(), router.half()):
        torch.testing.assert_close(half.bias, torch.tensor([0.501, 0.5, -0.003, 0.0]))
    assert "bias_steps" in router.state_dict()


def test_sigmoid_scores_of_almost_zero_get_a_finite_gradient() -> None:
    router = make_router("sigmoid", top_k=2)
    with torch.no_grad():
        router.weight.fill_(-86.0 / D)
    x = torch.ones(5, D, requires_grad=True)
    routing = router(x)
    (1e4 * routing.probabilities[:, 0].sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_sigmoid_scores_cannot_be_sampled() -> None:
    with pytest.raises(ValueError, match="one of none, jitter"):
        make_router("sigmoid", noise="gumbel")


def test_sigmoid_jitter_in_training_only() -> None:
    router, inputs = make_router("sigmoid", noise="jitter"), sentences(0)
    assert not torch.equal(*(route(router.train(), *inputs).weights for _ in range(2)))
    assert torch.equal(*(route(router.eval(), *inputs).weights for _ in range(2)))


# ---- expert choice


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("top_k", "factor"), [(1, 1.0), (2, 1.0), (2, 1.25), (1, 0.1), (4, 2.0)])
def test_experts_pick_their_share_of_each_sentence(seed: int, top_k: int, factor: float) -> None:
    x, mask, tag = sentences(seed)
    router = ExpertChoiceRouter(D, E, top_k, factor)
    answer = route(router, x, mask, tag)
    weights = weight_of_experts(answer).split(LENGTHS)
    for length, picked, scores in zip(
        LENGTHS, weights, answer.probabilities.split(LENGTHS), strict=True
    ):
        quota = min(max(math.ceil(top_k * length / E * factor), 1), length)
        for expert in range(E):
            best = set(scores[:, expert].argsort(descending=True)[:quota].tolist())
            assert set(picked[:, expert].nonzero().squeeze(1).tolist()) == best
            assert all(picked[t, expert] == scores[t, expert] for t in best)
    assert answer.valid is not None
    most = max(int((each > 0).sum(-1).max()) for each in weights)
    assert answer.experts.shape[1] == most == int(answer.valid.sum(-1).max())
    # those that exist stand in front, the surest first
    assert (answer.valid.int().diff(dim=-1) <= 0).all()
    assert (answer.weights.diff(dim=-1) <= 0).all()


def test_equal_scores_go_to_earlier_tokens() -> None:
    router = ExpertChoiceRouter(D, E, 1, 1.0)
    mask = right_padded([8, 4])
    picked = weight_of_experts(route(router, torch.zeros(2, 8, D), mask, torch.zeros(2, D))) > 0
    assert picked.all(dim=-1).nonzero().squeeze(1).tolist() == [0, 1, 8]
    assert picked.any(dim=-1).sum() == 3


# ---- language


def test_all_tokens_of_a_sentence_share_the_experts_of_its_tag() -> None:
    router, (x, mask, tag) = make_router("language", 2, num_experts=16), sentences(0)
    tag[3] = tag[0]
    answer = route(router, x, mask, tag)
    expected = (tag @ router.weight.t()).softmax(-1)
    by_sentence = answer.experts.split(LENGTHS)
    for row, experts in enumerate(by_sentence):
        assert (experts == expected[row].topk(2).indices).all()
    assert torch.equal(by_sentence[0][0], by_sentence[3][0])
    assert not torch.equal(by_sentence[0][0], by_sentence[1][0])
    # balance is wanted over tokens, so a longer sentence counts more
    share = torch.zeros(16)
    for row, length in enumerate(LENGTHS):
        share[by_sentence[row][0, 0]] += length / sum(LENGTHS)
    mean = answer.probabilities.mean(0)
    torch.testing.assert_close(answer.losses["load_balance"], 16 * (mean * share).sum())


def test_hypotheses_of_a_beam_follow_the_tag_of_their_sentence() -> None:
    router, tag = make_router("language", 1, num_experts=16), torch.randn(3, D)
    answer = router(torch.randn(3 * 5, D), None, (3, 5), tag)
    expected = (tag @ router.weight.t()).argmax(-1)
    assert torch.equal(answer.experts.view(3, 5), expected.unsqueeze(1).expand(3, 5))


def test_without_a_tag_there_is_no_routing_by_language() -> None:
    x, mask, _ = sentences(0)
    with pytest.raises(RuntimeError, match="language tag"):
        route(make_router("language"), x, mask, None)  # type: ignore[arg-type]
