"""Experts that become one dense feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds_seq.data.batch import Batch, Seq2SeqInputs
from ds_seq.errors import UserError
from ds_seq.modules.body import Context
from ds_seq.modules.feed_forward import FeedForward
from ds_seq.moe.branch import ConditionalBranch, ResidualBranch, SharedBranch
from ds_seq.moe.experts import Experts
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.surgery.merge import ExpertUse, measure_use, merge_experts
from tests.batches import batch_of
from tests.unit.moe.made import FFN, ROUTERS, D, E, dense_twin, make_layer, right_padded

PAD = 1
ACTIVATIONS = ("relu", "gelu", "swiglu")


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _scrambled(module: nn.Module, seed: int = 5) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(_random(seed + index, *parameter.shape) / 2)


def _equal_experts(layer: MoeFeedForward) -> None:
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))


def _use(*weights: float, branch: float = 0.0) -> ExpertUse:
    return ExpertUse(torch.tensor(weights, dtype=torch.float64), branch)


def _branch(name: str, activation: str, width: int = FFN) -> Any:
    dense = FeedForward(D, width, activation, 0.0)
    _scrambled(dense)
    if name == "shared":
        return SharedBranch(dense)
    if name == "residual":
        return ResidualBranch(dense, D)
    return ConditionalBranch(dense, D, budget=0.5, dropout=0.0)


def _same(ours: FeedForward, theirs: FeedForward) -> None:
    mine = ours.state_dict()
    assert mine.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine[name], value), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_equal_experts_merge_to_exactly_that_expert(activation: str, top_k: int) -> None:
    layer = make_layer(
        top_k=top_k, activation=activation, normalize_weights="after_dropping"
    ).eval()
    _equal_experts(layer)
    weights = _random(1, E).double().softmax(0)
    merged = merge_experts(layer, ExpertUse(weights, 0.0))
    _same(merged, dense_twin(layer.experts, 2))
    x = _random(2, 3, 5, D)
    torch.testing.assert_close(merged(x)[0], layer(x)[0], rtol=1e-5, atol=1e-5)


def test_norms_of_hidden_units_are_averaged_like_the_rest() -> None:
    experts = Experts(D, FFN, 2, 0, "relu", 0.0, 1, nn.LayerNorm(FFN))
    _scrambled(experts)
    layer = make_layer(num_experts=2)
    layer.experts = experts
    for weights, expected in (((0.0, 1.0), [0.0, 1.0]), ((0.25, 0.75), [0.25, 0.75])):
        norm = merge_experts(layer, _use(*weights)).inner_norm
        assert norm is not None and experts.inner_norm is not None
        for name, stacked in experts.inner_norm.named_parameters():
            mean = expected[0] * stacked[0, 0] + expected[1] * stacked[1, 0]
            torch.testing.assert_close(norm.get_parameter(name), mean)
    layer.branch = SharedBranch(FeedForward(D, FFN, "relu", 0.0, nn.LayerNorm(FFN)))
    with pytest.raises(UserError, match="have a norm each"):
        merge_experts(layer, _use(0.5, 0.5))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_expert_with_all_the_weight_is_the_result(activation: str) -> None:
    layer = make_layer(activation=activation)
    merged = merge_experts(layer, _use(0.0, 0.0, 1.0, 0.0))
    _same(merged, dense_twin(layer.experts, 2))
    assert merged.activation == activation


def test_the_result_is_the_weighted_average_of_the_experts() -> None:
    layer = make_layer(num_experts=2)
    merged = merge_experts(layer, _use(0.25, 0.75))
    for name, value in merged.named_parameters():
        one, other = (dense_twin(layer.experts, e).get_parameter(name) for e in (0, 1))
        torch.testing.assert_close(value, 0.25 * one + 0.75 * other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_that_do_not_sum_to_one_scale_the_output(activation: str) -> None:
    layer = make_layer(activation=activation, normalize_weights="none").eval()
    _equal_experts(layer)
    with torch.no_grad():
        layer.gate.get_parameter("weight").zero_()  # every expert weighs 1 / E, one is visited
    x = _random(2, 3, 5, D)
    use = _measure(layer, [x])
    merged = merge_experts(layer, use)
    assert float(use.experts.sum()) == pytest.approx(1 / E)
    assert torch.equal(use.shares, use.experts / use.experts.sum())
    torch.testing.assert_close(merged(x)[0], layer(x)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged(x)[0], dense_twin(layer.experts, 0)(x)[0] / E)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_shared_experts_keep_their_hidden_units(activation: str) -> None:
    branch = _branch("shared", activation, 2 * FFN)
    layer = make_layer(
        top_k=2, activation=activation, normalize_weights="after_dropping", branch=branch
    ).eval()
    _equal_experts(layer)
    merged = merge_experts(layer, _use(0.4, 0.3, 0.2, 0.1))
    assert merged.down.in_features == 3 * FFN
    x = _random(2, 3, 5, D)
    torch.testing.assert_close(merged(x)[0], layer(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["residual", "conditional"])
def test_a_branch_in_a_learned_mixture_is_one_more_expert(name: str, activation: str) -> None:
    branch = _branch(name, activation)
    options: dict[str, Any] = {"activation": activation, "branch": branch}
    layer = make_layer(top_k=2, normalize_weights="after_dropping", **options).eval()
    with torch.no_grad():  # the same share for each token: softmax(log 3, 0), sigmoid(log 3)
        branch.mix.weight.zero_()
        branch.mix.bias.zero_()
        branch.mix.bias[0] = torch.tensor(3.0).log()
    x = _random(2, 3, 5, D)
    use = _measure(layer, [x])
    assert float(use.experts.sum()) == pytest.approx(0.75) and use.branch == pytest.approx(0.25)
    assert float(use.shares.sum()) == pytest.approx(1.0)
    merged = merge_experts(layer, use)
    weights = [*use.experts.tolist(), use.branch]
    for key, value in merged.named_parameters():
        parts = [dense_twin(layer.experts, e).get_parameter(key) for e in range(E)]
        parts.append(branch.dense.get_parameter(key))
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(value, expected)

    _equal_experts(layer)  # all alike, so that nothing is approximate
    branch.dense.load_state_dict(dense_twin(layer.experts, 0).state_dict())
    torch.testing.assert_close(merge_experts(layer, use)(x)[0], layer(x)[0], rtol=1e-5, atol=1e-5)


class _OneLayer(nn.Module):
    """Looks source tokens up and hands them to a layer with experts."""

    def __init__(self, layer: MoeFeedForward, vectors: Tensor) -> None:
        super().__init__()
        self.layer, self.vectors = layer, vectors
        self.seen: list[Tensor] = []

    def forward(self, inputs: Seq2SeqInputs) -> None:
        x, mask = self.vectors[inputs.source], inputs.source_mask
        self.seen.append(self.layer(x, Context(mask, tag=x[:, 0]))[0][mask])


def _measure(layer: MoeFeedForward, inputs: list[Tensor]) -> ExpertUse:
    """The use on inputs (B, T, D) without padding."""
    model = _OneLayer(layer, torch.cat([x.flatten(0, 1) for x in inputs])).eval()
    model.vectors = torch.cat([_random(0, 2, D), model.vectors])  # rows 0 and 1 are nobody's
    start, batches = 2, []
    for x in inputs:
        src = torch.arange(start, start + x.shape[0] * x.shape[1]).view(x.shape[:2])
        start += src.numel()
        batches.append(_batch(src))
    return measure_use(model, batches, ["layer"])["layer"]


def _batch(src: Tensor) -> Batch:
    return batch_of(src, src)


def _batches() -> Iterator[Batch]:
    for seed, lengths in enumerate(([7, 3, 1], [2], [5, 5, 4, 4])):
        generator = torch.Generator().manual_seed(seed)
        real = right_padded(lengths)
        src = torch.randint(2, 30, real.shape, generator=generator)
        yield _batch(src.masked_fill(~real, PAD))


def _telling(layer: MoeFeedForward) -> None:
    """Expert e adds its weight to feature e of the output, a branch to the last feature."""
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.zero_()
        layer.experts.b2[:, 0, :E] = torch.eye(E)
        if layer.branch is not None:
            dense = layer.branch.dense
            assert isinstance(dense, FeedForward)
            for parameter in dense.parameters():
                parameter.zero_()
            dense.down.bias[-1] = 1.0


@pytest.mark.parametrize("branch", [None, "residual", "conditional", "shared"])
@pytest.mark.parametrize("normalize", ["none", "before_dropping", "after_dropping"])
@pytest.mark.parametrize("router", ROUTERS)
def test_use_is_what_the_outputs_were_multiplied_with(
    router: str, normalize: str, branch: str | None
) -> None:
    made = None if branch is None else _branch(branch, "relu")
    layer = make_layer(router, top_k=2, normalize_weights=normalize, branch=made)
    _scrambled(layer.gate)
    if isinstance(made, ResidualBranch | ConditionalBranch):
        _scrambled(made.mix, 40)
    _telling(layer)
    model = _OneLayer(layer, 2 * _random(9, 30, D)).eval()
    use = measure_use(model, _batches(), ["layer"])["layer"]
    seen = torch.cat(model.seen).double().mean(0)  # (D,) over all real tokens
    torch.testing.assert_close(use.experts, seen[:E], rtol=1e-5, atol=1e-6)
    expected = 0.0 if branch in (None, "shared") else float(seen[-1])
    assert use.branch == pytest.approx(expected, rel=1e-5)
    assert float(use.shares.sum()) == pytest.approx(1.0)
    assert not layer.gate._forward_hooks
    assert int((use.shares > 0.02).sum()) > 1, "the test means to have several at work"


def test_use_does_not_depend_on_the_batches() -> None:
    layer = make_layer("softmax", top_k=2)
    _scrambled(layer.gate)
    model = _OneLayer(layer, _random(9, 30, D)).eval()
    together = measure_use(model, _batches(), ["layer"])["layer"]
    alone = [_batch(row[row != PAD][None]) for batch in _batches() for row in batch.inputs.source]
    apart = measure_use(model, alone, ["layer"])["layer"]
    torch.testing.assert_close(apart.experts, together.experts, rtol=1e-6, atol=1e-9)
