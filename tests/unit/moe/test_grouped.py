"""Grouped products: when the kernel applies, and the gradient of a bias per expert."""

from __future__ import annotations

import pytest
import torch

from ds_seq.moe.grouped import _AddBias, fits_grouped_kernel, sum_by_expert, use_grouped_kernel

OF_ROW = torch.tensor([0, 0, 0, 2, 2, 3])  # expert 1 is idle


@pytest.mark.parametrize(
    ("widths", "fits"),
    [
        ((64, 128, 128), True),
        ((64, 256, 128), True),  # swiglu
        ((64, 100, 100), False),
        ((64, 8, 4), False),  # swiglu: its first map has whole pieces, its second one not
        ((60, 128, 128), False),
    ],
)
def test_every_width_has_to_be_whole_pieces_of_16_bytes(
    widths: tuple[int, ...], fits: bool
) -> None:
    assert fits_grouped_kernel("cuda", torch.bfloat16, widths) is fits


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.bfloat16), ("cuda", torch.float16), ("cuda", torch.float32)],
)
def test_other_devices_and_precisions_go_through_the_loop(device: str, dtype: torch.dtype) -> None:
    assert not fits_grouped_kernel(device, dtype, (64, 128))


def test_a_cpu_never_uses_the_kernel() -> None:
    x, weight = torch.zeros(6, 64).bfloat16(), torch.zeros(4, 64, 128).bfloat16()
    assert not use_grouped_kernel(x, weight)


def test_gradients_of_rows_and_bias_are_exact() -> None:
    y = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, bias: _AddBias.apply(y, bias, OF_ROW), (y, bias))
    torch.testing.assert_close(_AddBias.apply(y, bias, OF_ROW), y + bias[OF_ROW, 0])


def test_gradients_equal_those_of_indexing() -> None:
    results = []
    for function in (_AddBias.apply, lambda y, bias, of_row: y + bias[of_row, 0]):
        generator = torch.Generator().manual_seed(1)
        y, bias, upstream = (
            torch.randn(shape, generator=generator) for shape in ((6, 5), (4, 1, 5), (6, 5))
        )
        inputs = y.requires_grad_(), bias.requires_grad_()
        results.append(torch.autograd.grad(function(*inputs, OF_ROW), inputs, upstream))
    torch.testing.assert_close(results[0], results[1])


def test_frozen_biases_get_no_gradient() -> None:
    y, bias = torch.randn(6, 5, requires_grad=True), torch.randn(4, 1, 5)
    _AddBias.apply(y, bias, OF_ROW).sum().backward()
    assert y.grad is not None and y.grad.eq(1).all() and bias.grad is None


def test_no_rows_sum_to_zero() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert sum_by_expert(torch.zeros(0, 5), nothing, 4).eq(torch.zeros(4, 5)).all()
