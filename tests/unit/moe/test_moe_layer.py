"""Properties of the MoE layer in one process: routing, padding, capacity, exactness of its
gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_seq.moe.experts import Experts
from ds_seq.moe.grouped import RowGroups, grouped_linear
from ds_seq.moe.layer import MoeFeedForward

D, FFN = 8, 12


def make_layer(**options: object) -> MoeFeedForward:
    torch.manual_seed(0)
    settings = {"d_model": D, "ffn_dim": FFN, "num_experts": 4, "seed": 3, **options}
    return MoeFeedForward(**settings)  # type: ignore[arg-type]


def one_expert(experts: Experts, index: int, x: Tensor) -> Tensor:
    """The textbook feed-forward of one expert, for comparison."""
    hidden = x @ experts.w1[index] + experts.b1[index]
    if experts.activation == "swiglu":
        gate, value = hidden.chunk(2, -1)
        hidden = F.silu(gate) * value
    else:
        hidden = F.relu(hidden) if experts.activation == "relu" else F.gelu(hidden)
    return hidden @ experts.w2[index] + experts.b2[index]


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_one_expert_is_a_dense_feed_forward(activation: str) -> None:
    layer = make_layer(num_experts=1, activation=activation, normalize_weights=True)
    nn.init.normal_(layer.experts.b1)
    nn.init.normal_(layer.experts.b2)
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(layer(x)[0], one_expert(layer.experts, 0, x))


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("normalize", [False, True])
def test_output_and_gradients_equal_the_weighted_sum_of_the_chosen_experts(
    top_k: int, normalize: bool
) -> None:
    layer = make_layer(top_k=top_k, normalize_weights=normalize).double()
    nn.init.normal_(layer.experts.b1)
    x = torch.randn(3, 4, D, dtype=torch.float64, requires_grad=True)
    y = layer(x)[0]

    # fp32 inside the gate is part of the specification, so the reference computes it so as well
    probabilities = F.linear(x.float(), layer.gate.weight.float()).softmax(-1)
    weights, ids = probabilities.topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    everyone = torch.stack([one_expert(layer.experts, e, x) for e in range(4)], dim=-2)
    chosen = everyone.gather(-2, ids.unsqueeze(-1).expand(*ids.shape, D))
    expected = (chosen * weights.unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)

    target = torch.randn_like(y)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((y * target).sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad((expected * target).sum(), inputs, allow_unused=True)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_padding_takes_no_place_and_counts_nowhere() -> None:
    layer = make_layer(capacity_factor=1.0, min_capacity=1, top_k=2, normalize_weights=True).train()
    x = torch.randn(2, 6, D)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    y, aux = layer(x, mask)
    changed = torch.where(mask.unsqueeze(-1), x, torch.full_like(x, 50.0))
    other, other_aux = layer(changed, mask)
    torch.testing.assert_close(y, other)
    assert torch.equal(y[0, 4:], torch.zeros(2, D))
    for name, loss in aux.losses.items():
        torch.testing.assert_close(loss, other_aux.losses[name])
    assert aux.stats.tokens.item() == 10 and aux.stats.load.sum().item() == 20


def test_evaluation_is_dropless_and_independent_of_the_batch() -> None:
    layer = make_layer(capacity_factor=0.25, min_capacity=1).eval()
    x = torch.randn(6, 7, D)
    together = layer(x)[0]
    for row in range(6):
        torch.testing.assert_close(layer(x[row : row + 1])[0][0], together[row])
    assert layer(x)[1].stats.dropped.item() == 0


def test_capacity_drops_the_last_tokens_of_a_full_expert() -> None:
    # features.md section 7, point 4: six tokens, four experts, capacity 2
    layer = make_layer(d_model=4, capacity_factor=1.0, min_capacity=0).train()
    logits = torch.tensor(
        [[2, 0, 0, 0], [1.5, 0, 1, 0], [0, 3, 0, 0], [1, 0.5, 0, 0], [0, 0, 0.5, 1], [2.5, 0, 0, 1]]
    )
    with torch.no_grad():
        layer.gate.weight.copy_(torch.eye(4))
        layer.experts.b2.fill_(1.0)
    y, aux = layer(logits.unsqueeze(0))
    assert (y[0].abs().sum(-1) > 0).tolist() == [True, True, True, False, True, False]
    assert aux.stats.dropped.item() == 2
    torch.testing.assert_close(aux.losses["load_balance"], torch.tensor(1.414368))


def test_top_2_weights_are_renormalized_after_dropping() -> None:
    layer = make_layer(
        d_model=4, top_k=2, capacity_factor=1.0, min_capacity=0, normalize_weights=True
    ).train()
    logits = torch.tensor(
        [[2, 0, 0, 0], [1.5, 0, 1, 0], [0, 3, 0, 0], [1, 0.5, 0, 0], [0, 0, 0.5, 1], [2.5, 0, 0, 1]]
    )
    with torch.no_grad():
        layer.gate.weight.copy_(torch.eye(4))
        layer.experts.w2.zero_()
        layer.experts.b2[:, 0] = torch.eye(4)  # the output shows the combine weight of each expert
    y = layer(logits.unsqueeze(0))[0][0]
    # token 5 is the fourth to want expert 0, whose three places are taken: expert 3 gets all its
    # weight
    torch.testing.assert_close(y[5], torch.tensor([0.0, 0, 0, 1.0]))
    torch.testing.assert_close(y[1], torch.tensor([0.622459, 0, 0.377541, 0]), rtol=1e-5, atol=1e-5)


def test_balanced_routing_has_load_balance_loss_one() -> None:
    layer = make_layer(d_model=4)
    with torch.no_grad():
        layer.gate.weight.copy_(torch.eye(4) * 30)
    loss = layer(torch.eye(4).repeat(3, 1).unsqueeze(0))[1].losses["load_balance"]
    torch.testing.assert_close(loss, torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_experts_differ_and_do_not_depend_on_the_layout() -> None:
    whole = make_layer(num_experts=4).experts
    assert not torch.equal(whole.w1[0], whole.w1[1])
    for rank in range(2):
        half = make_layer(num_experts=4, expert_parallel=2, expert_parallel_rank=rank).experts
        assert torch.equal(half.w1, whole.w1[2 * rank : 2 * rank + 2])
        assert torch.equal(half.w2, whole.w2[2 * rank : 2 * rank + 2])
    other_layer = make_layer(num_experts=4, layer_index=1).experts
    assert not torch.equal(whole.w1, other_layer.w1)


def test_residual_branch_reaches_every_token() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
            return 2 * x, None

    layer = make_layer(residual=Double())
    with torch.no_grad():
        assert layer.mix is not None
        layer.mix.weight.zero_()
        layer.mix.bias.copy_(torch.tensor([-40.0, 40.0]))  # only the dense branch
    x = torch.randn(1, 3, D)
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(layer(x, mask)[0], 2 * x)


def test_no_token_at_all() -> None:
    layer = make_layer(capacity_factor=1.0).train()
    x = torch.randn(1, 2, D, requires_grad=True)
    y, aux = layer(x, torch.zeros(1, 2, dtype=torch.bool))
    (y.sum() + sum(aux.losses.values())).backward()
    assert torch.equal(y, torch.zeros_like(y)) and x.grad is not None
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("noise", ["jitter", "gumbel"])
def test_noise_only_in_training(noise: str) -> None:
    layer = make_layer(noise=noise, num_experts=4)
    x = torch.randn(4, 64, D)
    layer.eval()
    assert torch.equal(layer(x)[1].stats.load, layer(x)[1].stats.load)
    layer.train()
    assert not torch.equal(layer(x)[0], layer(x)[0])


def test_half_precision_gate_computes_in_float32() -> None:
    layer = make_layer(top_k=2, normalize_weights=True)
    x = torch.randn(2, 16, D).bfloat16()
    exact = layer.gate(x.reshape(-1, D).float()).probabilities
    half = layer.bfloat16()
    with torch.no_grad():
        rounded = half.gate(x.reshape(-1, D)).probabilities
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(
        rounded, exact, rtol=0.02, atol=0.01
    )  # only the weights were rounded
    assert half(x)[0].dtype == torch.bfloat16


def test_grouped_linear_equals_a_loop_and_its_gradients() -> None:
    counts = [3, 0, 4, 1]
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 1, 6, dtype=torch.float64, requires_grad=True)
    groups = RowGroups(torch.tensor(counts))
    assert torch.autograd.gradcheck(
        lambda a, b, c: grouped_linear(a, b, c, groups), (x, weight, bias)
    )
    owner = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3])
    expected = torch.einsum("ri,rio->ro", x, weight[owner]) + bias[owner, 0]
    torch.testing.assert_close(grouped_linear(x, weight, bias, groups), expected)
    with torch.no_grad():
        torch.testing.assert_close(grouped_linear(x, weight, bias, groups), expected)
