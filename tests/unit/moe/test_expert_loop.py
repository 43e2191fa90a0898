"""The experts' autograd function against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_seq.modules.activations import ACTIVATIONS
from ds_seq.moe.expert_loop import _window, expert_loop
from ds_seq.moe.experts import Experts
from tests.unit.modules.formulas import formula

D_MODEL, FFN_DIM = 6, 5
COUNTS = torch.tensor([3, 0, 4, 1])  # an idle expert among them


def _net(activation: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    width = ACTIVATIONS[activation].num_parts * FFN_DIM
    shapes = ((4, D_MODEL, width), (4, 1, width), (4, D_MODEL, FFN_DIM), (4, 1, D_MODEL))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def _plain(x: Tensor, net: list[Tensor], noise: Tensor | None, activation: str) -> Tensor:
    w1, b1, w2, b2 = net
    of_row = torch.repeat_interleave(torch.arange(4), COUNTS)
    hidden = torch.einsum("rd,rdh->rh", x, w1[of_row]) + b1[of_row, 0]
    hidden = formula(activation, hidden)
    if noise is not None:
        hidden = hidden * noise
    return torch.einsum("rf,rdf->rd", hidden, w2[of_row]) + b2[of_row, 0]


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_values_and_gradients_are_those_of_autograd(
    activation: str, dtype: torch.dtype, with_noise: bool
) -> None:
    torch.manual_seed(2)
    x = torch.randn(8, D_MODEL, dtype=dtype, requires_grad=True)
    noise = torch.rand(8, FFN_DIM, dtype=dtype).round() * 2 if with_noise else None
    net, upstream = _net(activation, dtype), torch.randn(8, D_MODEL, dtype=dtype)
    expected = _plain(x, net, noise, activation)
    y = expert_loop(x, *net, noise, ACTIVATIONS[activation], COUNTS)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(y, expected, **tolerance)
    ours = torch.autograd.grad(y, [x, *net], upstream)
    theirs = torch.autograd.grad(expected, [x, *net], upstream)
    for actual, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, other, **tolerance)
    with torch.no_grad():
        alone = expert_loop(x, *net, noise, ACTIVATIONS[activation], COUNTS)
    torch.testing.assert_close(alone, y, rtol=0, atol=0)


def test_frozen_experts_pass_the_gradient_on() -> None:
    x = torch.randn(8, D_MODEL, dtype=torch.float64, requires_grad=True)
    net = [parameter.detach() for parameter in _net("gelu", torch.float64)]
    (ours,) = torch.autograd.grad(
        expert_loop(x, *net, None, ACTIVATIONS["gelu"], COUNTS).sum(), [x]
    )
    (theirs,) = torch.autograd.grad(_plain(x, net, None, "gelu").sum(), [x])
    torch.testing.assert_close(ours, theirs)


def test_only_one_tensor_as_wide_as_the_hidden_layer_is_kept() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    net = _net("swiglu", torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        expert_loop(torch.randn(8, D_MODEL), *net, None, ACTIVATIONS["swiglu"], COUNTS)
    activations = sum(kept) - net[0].numel() - net[2].numel()
    assert activations == 8 * (D_MODEL + 2 * FFN_DIM)


def test_experts_drop_hidden_units_in_training_only() -> None:
    experts = Experts(D_MODEL, 64, 4, 0, "relu", 0.5, 3)
    torch.nn.init.constant_(experts.b1, 1.0)
    torch.nn.init.ones_(experts.w2)
    torch.nn.init.zeros_(experts.w1)
    x = torch.zeros(8, D_MODEL)
    torch.manual_seed(3)
    noisy = experts(x, COUNTS)
    assert noisy.unique().numel() > 4 and (noisy % 2 == 0).all()  # kept units weigh 2 each
    assert 40 < noisy.mean() < 90
    torch.testing.assert_close(experts.eval()(x, COUNTS), torch.full((8, D_MODEL), 64.0))


def test_no_rows_at_all() -> None:
    experts = Experts(D_MODEL, FFN_DIM, 4, 0, "relu", 0.0, 3)
    x = torch.zeros(0, D_MODEL, requires_grad=True)
    y = experts(x, torch.zeros(4, dtype=torch.int64))
    y.sum().backward()
    assert y.shape == (0, D_MODEL)
    for parameter in experts.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_windows_hold_the_rows_of_an_expert_and_have_few_sizes() -> None:
    sizes = set()
    for size in range(1, 600):
        start = (7 * size) % (1000 - size)
        window = _window(start, start + size, 1000)
        rows = range(1000)[window.rows]
        assert list(rows[window.core]) == list(range(start, start + size))
        own, (before, behind) = window.core, window.margins
        assert (before.start, before.stop, behind.start) == (0, own.start, own.stop)
        assert behind.stop == len(rows) <= size * (1 + 1 / 16)
        sizes.add(len(rows))
    assert len(sizes) < 110
    assert _window(0, 599, 600).rows == slice(0, 600)  # never more rows than there are


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_rows_of_neighbors_leave_no_trace(activation: str) -> None:
    torch.manual_seed(4)
    counts = torch.tensor([37, 61, 50])  # windows of 38, 62 and 52 rows
    net = [p[:3].detach().requires_grad_() for p in _net(activation, torch.float64)]
    x = torch.randn(148, D_MODEL, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    together = torch.autograd.grad(
        expert_loop(x, *net, None, ACTIVATIONS[activation], counts), [x, *net], upstream
    )
    alone: list[list[Tensor]] = []
    for expert, (rows, grad) in enumerate(
        zip(x.split(counts.tolist()), upstream.split(counts.tolist()), strict=True)
    ):
        net_e = [p[expert : expert + 1].detach().requires_grad_() for p in net]
        rows = rows.detach().requires_grad_()
        y = expert_loop(rows, *net_e, None, ACTIVATIONS[activation], counts[expert : expert + 1])
        alone.append(list(torch.autograd.grad(y, [rows, *net_e], grad)))
    for ours, theirs in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.cat(theirs))
