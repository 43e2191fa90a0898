"""Dense feed-forward layers next to the experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ds_seq.modules.body import Context
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from tests.unit.moe.made import D, make_layer, right_padded


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, routed = (torch.randn(2, 5, D, generator=generator) for _ in range(2))
    return x, routed, right_padded([5, 3])


def dense() -> FeedForward:
    return FeedForward(D, 6, "relu", 0.0)


def test_residual_mixes_by_a_softmax_of_two() -> None:
    branch, (x, routed, mask) = ResidualBranch(dense(), D), inputs()
    y, losses = branch(x, routed, mask)
    share = branch.mix(x).softmax(-1)
    torch.testing.assert_close(y, routed * share[..., :1] + branch.dense(x)[0] * share[..., 1:])
    assert losses == {}


def test_a_shared_expert_is_added() -> None:
    branch, (x, routed, mask) = SharedBranch(dense()), inputs()
    y, losses = branch(x, routed, mask)
    torch.testing.assert_close(y, routed + branch.dense(x)[0])
    assert losses == {}


def test_the_conditional_gate_shares_between_experts_and_dense() -> None:
    branch, (x, routed, mask) = ConditionalBranch(dense(), D, 0.3, 0.0), inputs()
    y, losses = branch(x, routed, mask)
    share = branch.mix(x).sigmoid()
    torch.testing.assert_close(y, routed * share + branch.dense(x)[0] * (1 - share))
    expected = (share.squeeze(-1)[mask].mean() - 0.3).abs()
    torch.testing.assert_close(losses, {"budget": expected})


def test_the_budget_loss_pulls_the_share_to_the_budget() -> None:
    branch, (x, routed, mask) = ConditionalBranch(dense(), D, 0.2, 0.0), inputs()
    for _ in range(400):
        loss = branch(x, routed, mask)[1]["budget"]
        gradients = torch.autograd.grad(loss, list(branch.mix.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(branch.mix.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    assert branch.mix(x).sigmoid()[mask].mean().item() == pytest.approx(0.2, abs=0.02)


def test_conditional_dropout_sends_tokens_to_the_dense_part_alone() -> None:
    branch = ConditionalBranch(dense(), D, 0.5, 0.4)
    x, routed = torch.randn(1, 3000, D), torch.full((1, 3000, D), 100.0)
    torch.manual_seed(0)
    y = branch.train()(x, routed, None)[0]
    alone = torch.isclose(y, branch.dense(x)[0]).all(-1)
    assert alone.float().mean().item() == pytest.approx(0.4, abs=0.04)
    expected = branch.eval()(x, routed, None)[0]
    torch.testing.assert_close(y[~alone], expected[~alone])
    assert torch.equal(expected, branch(x, routed, None)[0])


@pytest.mark.parametrize("kind", ["residual", "shared", "conditional"])
def test_a_branch_reaches_every_token_whatever_the_experts_drop(kind: str) -> None:
    branch: nn.Module = {
        "residual": ResidualBranch(dense(), D),
        "shared": SharedBranch(dense()),
        "conditional": ConditionalBranch(dense(), D, 0.5, 0.0),
    }[kind]
    layer = make_layer(branch=branch, capacity_factor=0.1, min_capacity=0).train()
    alone = make_layer(capacity_factor=0.1, min_capacity=0).train()
    x, _, mask = inputs()
    y, aux, _ = layer(x, Context(mask))
    routed = alone(x, Context(mask))[0]
    assert aux.stats.dropped.item() > 0 and (routed == 0).all(-1).any()
    torch.testing.assert_close(y, branch(x, routed, mask)[0])
    (y.square().sum() + sum(aux.losses.values())).backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert ("budget" in aux.losses) == (kind == "conditional")


@pytest.mark.parametrize("kind", ["residual", "conditional"])
def test_shares_are_computed_in_float32(kind: str) -> None:
    branch: nn.Module = {
        "residual": ResidualBranch(dense(), D),
        "conditional": ConditionalBranch(dense(), D, 0.5, 0.0),
    }[kind].bfloat16()
    x, routed, mask = inputs()
    y, losses = branch(x.bfloat16(), routed.bfloat16(), mask)
    assert y.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())
