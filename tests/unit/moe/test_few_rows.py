"""The kernels of experts with few rows compute what the loop over experts computes."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ds_seq.modules.activations import ACTIVATIONS
from ds_seq.moe import few_rows
from ds_seq.moe.expert_loop import expert_loop
from tests.native_kernels import kernels

D_MODEL, FFN_DIM = 32, 80
# an idle expert, and numbers of rows around the sizes of the tiles
COUNTS = torch.tensor([3, 0, 4, 1, 5, 8, 9, 17, 2])

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the kernels serve AVX-512"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return kernels(tmp_path_factory.mktemp("native"))


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def library(request, compiled, monkeypatch):
    monkeypatch.setattr(few_rows, "library", lambda: compiled)
    threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield compiled
    torch.set_num_threads(threads)


def _net(activation: str, has_biases: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    width, number = ACTIVATIONS[activation].num_parts * FFN_DIM, len(COUNTS)
    shapes = [(number, D_MODEL, width), (number, 1, width)]
    shapes += [(number, D_MODEL, FFN_DIM), (number, 1, D_MODEL)]
    return [
        torch.randn(shape, generator=generator).requires_grad_()
        if has_biases or shape[1] > 1
        else None
        for shape in shapes
    ]


def _results(
    compute: Callable[..., Tensor],
    x: Tensor,
    net: list[Tensor | None],
    noise: Tensor | None,
    activation: str,
) -> list[Tensor]:
    y = compute(x, *net, noise, ACTIVATIONS[activation], COUNTS)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    inputs = [each for each in (x, *net) if each is not None]
    return [y, *torch.autograd.grad(y, inputs, upstream)]


@pytest.mark.parametrize("has_biases", [True, False])
@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_values_and_gradients_are_those_of_the_loop(
    library, activation: str, with_noise: bool, has_biases: bool
) -> None:
    torch.manual_seed(2)
    x = torch.randn(int(COUNTS.sum()), D_MODEL, requires_grad=True)
    noise = torch.rand(len(x), FFN_DIM).round() * 2 if with_noise else None
    net = _net(activation, has_biases)
    assert few_rows.serves(x, net[0], net[2])
    ours = _results(few_rows.few_rows, x, net, noise, activation)
    for mine, loop in zip(ours, _results(expert_loop, x, net, noise, activation), strict=True):
        torch.testing.assert_close(mine, loop, rtol=1e-4, atol=2e-4)


def test_frozen_experts_pass_the_gradient_on(library) -> None:
    x = torch.randn(int(COUNTS.sum()), D_MODEL, requires_grad=True)
    net = [each.detach() for each in _net("relu", True)]
    (grad,) = torch.autograd.grad(
        few_rows.few_rows(x, *net, None, ACTIVATIONS["relu"], COUNTS).sum(), [x]
    )
    (loop,) = torch.autograd.grad(
        expert_loop(x, *net, None, ACTIVATIONS["relu"], COUNTS).sum(), [x]
    )
    torch.testing.assert_close(grad, loop, rtol=1e-4, atol=2e-4)


def test_a_row_does_not_depend_on_the_others(library) -> None:
    torch.manual_seed(4)
    x, weight = torch.randn(int(COUNTS.sum()), D_MODEL), torch.randn(len(COUNTS), D_MODEL, 48)
    together = few_rows.rows_by_weights(x, weight, None, COUNTS)
    rows = x.split(COUNTS.tolist())
    for expert, mine in enumerate(together.split(COUNTS.tolist())):
        for row, result in zip(rows[expert], mine, strict=True):
            count = torch.tensor([1])
            alone = few_rows.rows_by_weights(row[None], weight[expert][None], None, count)
            assert torch.equal(alone[0], result)


def test_other_tensors_are_left_to_the_loop(library) -> None:
    x, weight = torch.randn(8, 32), torch.randn(2, 32, 48)
    assert few_rows.serves(x, weight)
    assert not few_rows.serves(x.double(), weight.double())
    assert not few_rows.serves(x, weight.transpose(1, 2))
    assert not few_rows.serves(torch.randn(8, 24), weight)
    assert not few_rows.serves(torch.randn(10_000, 32), weight)
    assert not few_rows.serves(x[:0], weight)


def test_a_nan_is_not_hidden_by_the_activation(library) -> None:
    x = torch.ones(int(COUNTS.sum()), D_MODEL)
    x[2, 5] = torch.nan
    net = [None if each is None else each.detach() for each in _net("relu", False)]
    y = few_rows.few_rows(x, *net, None, ACTIVATIONS["relu"], COUNTS)
    assert y[2].isnan().all() and y.isnan().sum() == D_MODEL


def test_a_forked_process_computes_with_threads_of_its_own(library) -> None:
    x, weight = torch.randn(int(COUNTS.sum()), D_MODEL), torch.randn(len(COUNTS), D_MODEL, 48)
    here, threads = few_rows.rows_by_weights(x, weight, None, COUNTS), torch.get_num_threads()

    if threads > 1:  # all threads of the pool exist, and wait
        together = threading.Barrier(threads)
        list(few_rows._pool(threads).map(lambda _: together.wait(30), range(threads)))
        time.sleep(0.05)

    def compute() -> None:
        torch.set_num_threads(threads)  # PyTorch leaves a child one
        sys.exit(not torch.equal(few_rows.rows_by_weights(x, weight, None, COUNTS), here))

    child = multiprocessing.get_context("fork").Process(target=compute)
    child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0
