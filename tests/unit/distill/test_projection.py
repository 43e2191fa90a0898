"""Projections of hidden states: what they are at the start, and that they learn."""

from __future__ import annotations

import pytest
import torch

from ds_seq.config.distillation import HiddenConfig
from ds_seq.criterions import hidden_term
from ds_seq.criterions.layerwise import hidden_loss
from ds_seq.distill.projection import HiddenProjection, attach_projection, without_projection
from ds_seq.models.build import build_seq2seq
from ds_seq.models.output import LayerOutputs
from tests.distributed import spine

BOTH = ("encoder", "decoder")
TERM = hidden_term(HiddenConfig())


def _states(width: int, seed: int) -> LayerOutputs:
    generator = torch.Generator().manual_seed(seed)
    batch = spine.batches(0)[1]
    sizes = (batch.inputs.source.shape, batch.labels.shape)
    stacks = (tuple(torch.randn(*size, width, generator=generator) for _ in "12") for size in sizes)
    return LayerOutputs(*stacks)


def test_between_equal_widths_it_starts_as_the_identity() -> None:
    projection, states = HiddenProjection(6, 6, BOTH, seed=1), _states(6, 2)
    for stack in BOTH:
        for before, after in zip(
            getattr(states, stack), getattr(projection(states), stack), strict=True
        ):
            assert torch.equal(before, after)


@pytest.mark.parametrize("widths", [(4, 9), (9, 4)])
def test_it_is_the_same_on_every_rank_and_keeps_lengths(widths: tuple[int, int]) -> None:
    first, second = (HiddenProjection(*widths, BOTH, seed=3) for _ in "12")
    for stack in BOTH:
        weight = first.maps[stack].weight
        assert torch.equal(weight, second.maps[stack].weight) and weight.shape == widths[::-1]
        square = weight.T @ weight if widths[0] < widths[1] else weight @ weight.T
        torch.testing.assert_close(square, torch.eye(min(widths)))
    assert not torch.equal(first.maps["encoder"].weight, first.maps["decoder"].weight)


def test_the_gradient_is_that_of_finite_differences() -> None:
    projection = HiddenProjection(4, 5, BOTH, seed=1).double()
    student, teacher = _states(4, 2), _states(5, 3)
    batch = spine.batches(0)[1]

    def loss(encoder: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Like the loss of `hidden_loss`, which is in float32, in float64."""
        layers = LayerOutputs((state,), ())
        mapped = torch.func.functional_call(projection, {"maps.encoder.weight": encoder}, (layers,))
        difference = mapped.encoder[0] - teacher.encoder[0].double()
        real: torch.Tensor = difference[batch.inputs.source_mask]
        return real.square().sum() / 5

    weight = projection.maps["encoder"].weight.detach().requires_grad_()
    state = student.encoder[0].double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight, state))
    # the loss of training has the same gradient
    single = HiddenProjection(4, 5, BOTH, seed=1)
    leaf = student.encoder[0].clone().requires_grad_()
    layers = single(LayerOutputs((leaf,), ()))
    hidden_loss(layers, LayerOutputs((teacher.encoder[0],), ()), batch, TERM).backward()
    wanted = torch.autograd.grad(loss(weight, state), (weight, state))
    found = (single.maps["encoder"].weight.grad, leaf.grad)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs.float())


def test_the_projection_learns_and_only_captured_states_are_mapped() -> None:
    config = spine.model_config(moe=None)
    model = build_seq2seq(config, spine.VOCAB, 1, 0, seed=5)
    whole = sum(parameter.numel() for parameter in model.parameters())
    attach_projection(model, HiddenProjection(16, 24, ("decoder",), seed=1))
    batch = spine.batches(0)[1]
    assert model(batch.inputs).layers is None
    model.requires_grad_(False).hidden_projection.requires_grad_()  # type: ignore[operator,union-attr]
    teacher = build_seq2seq(spine.model_config(moe=None, d_model=24), spine.VOCAB, 1, 0, seed=9)
    term = hidden_term(HiddenConfig(encoder=[]))
    theirs = teacher.eval()(batch.inputs, "hidden").layers
    optimizer = torch.optim.Adam(model.hidden_projection.parameters(), lr=0.05)  # type: ignore[union-attr]
    losses = []
    for _ in range(40):
        layers = model(batch.inputs, "hidden").layers
        assert layers.encoder[0].shape[-1] == 16 and layers.decoder[0].shape[-1] == 24
        loss = hidden_loss(layers, theirs, batch, term)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert sum(parameter.numel() for _, parameter in without_projection(model)) == whole
    size = config.num_params(spine.VOCAB, spine.VOCAB)
    assert size is not None and size.total == whole


def test_a_projection_that_would_not_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="is not trained if the weight"):
        HiddenConfig(projection="learned", weight=0)
