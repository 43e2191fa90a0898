"""BitLinear: the published formulas, straight-through gradients, and scales in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.modules.activations import find_activation
from ds_seq.modules.bitlinear import BitLinear, Bits, round_weight
from ds_seq.moe.experts import Experts

TERNARY = Bits("ternary", 8, "rms")
KINDS = [
    TERNARY,
    Bits("binary", 8, "layer"),
    Bits("ternary", 4, "none"),
    Bits("ternary", None, "rms"),
    Bits("binary", None, "none"),
]


def _reference(x: Tensor, weight: Tensor, bias: Tensor, widths: list[int], bits: Bits) -> Tensor:
    """Return what the papers say, in plain torch with `z + (round(z) - z).detach()`."""
    if bits.norm == "rms":
        x = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    elif bits.norm == "layer":
        x = F.layer_norm(x, x.shape[-1:])
    if bits.activation_bits is not None:
        levels = 2 ** (bits.activation_bits - 1) - 1
        scale = levels / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + ((x * scale).round() / scale - x).detach()
    parts = []
    for part in weight.split(widths):
        scale = part.abs().mean().clamp(min=1e-5)
        if bits.weights == "ternary":
            rounded = (part / scale).round().clamp(-1, 1) * scale
        else:
            rounded = torch.where(part > part.mean(), scale, -scale)
        parts.append(part + (rounded - part).detach())
    return F.linear(x, torch.cat(parts), bias)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32)


def test_golden_numbers():
    """Worked out by hand: mean |W| = 0.5; |x| up to 2.54, so a level is 0.02."""
    weight = torch.tensor([[0.9, -0.2, 0.26], [-1.2, 0.24, -0.2]])
    rounded = round_weight(weight, [2], "ternary")
    assert rounded.signs.tolist() == [[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]
    assert rounded.scales.tolist() == [0.5]
    binary = round_weight(weight, [2], "binary")  # the mean is -0.0333
    assert binary.signs.tolist() == [[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]
    assert binary.scales.tolist() == [0.5]
    apart = round_weight(weight, [1, 1], "ternary")
    assert apart.scales.tolist() == pytest.approx([1.36 / 3, 1.64 / 3])
    x = torch.tensor([[2.54, -0.011, 0.029]])  # levels 127, -1 and 1
    y = Bits("ternary", 8, "none").linear(x, weight, torch.tensor([0.1, 0.2]), [2])
    assert y[0].tolist() == pytest.approx([(2.54 + 0.02) * 0.5 + 0.1, -2.54 * 0.5 + 0.2], abs=1e-6)


@pytest.mark.parametrize("bits", KINDS, ids=str)
@pytest.mark.parametrize("rows", [(5,), (2, 3), (0,)])
def test_output_and_gradients_are_those_of_the_papers(bits: Bits, rows: tuple[int, ...]) -> None:
    widths = [6, 2, 2]
    inputs = _drawn(*rows, 12), _drawn(10, 12), _drawn(10)
    grad = _drawn(*rows, 10)
    results = []
    for run in (bits.linear, partial(_reference, bits=bits)):
        x, weight, bias = (each.clone().requires_grad_() for each in inputs)
        y = run(x, weight, bias, widths)
        y.backward(grad)
        results.append((y.detach(), x.grad, weight.grad, bias.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("bits", KINDS, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_packed_maps_return_exactly_the_same(bits: Bits, activation: str) -> None:
    linear = BitLinear(70, 24, parts=(8, 16), bits=bits)
    x = _drawn(3, 5, 70)
    with torch.no_grad():
        expected = linear(x, activation)
        linear.pack()
        packed = linear(x, activation)
        linear.weight.mul_(-1.0)  # behind the back of the copy
        again = linear(x, activation)
    if bits.activation_bits is not None:  # sums of whole numbers are exact in any order
        assert torch.equal(packed, expected)
    torch.testing.assert_close(packed, expected)
    assert torch.equal(again, packed)
    assert (linear(x, activation) - packed).abs().max() > 0.1  # gradients need the weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_in_float32_in_any_precision(dtype: torch.dtype) -> None:
    """Sums above 65,504 and scales that half precision cannot hold do no harm."""
    bits = Bits("ternary", 8, "none")
    weight = (torch.ones(4, 4096) * 1e-3).to(dtype)
    x = torch.ones(2, 4096, dtype=dtype) * 100.0
    y = bits.linear(x, weight, None, [4])
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(y.float(), exact, rtol=4e-3, atol=0.0)
    rounded = round_weight(weight, [4], "ternary")
    assert rounded.scales.dtype == torch.float32
    assert rounded.scales.item() == weight[0, 0].float().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_levels_and_gradients_of_single(dtype: torch.dtype) -> None:
    """Inputs and weights that half precision can hold are rounded to the same levels and signs."""
    experts = Experts(16, 24, 2, 0, "swiglu", 0.0, 0, bits=TERNARY).to(dtype)
    linear = BitLinear(16, 12, parts=(4, 8), bits=TERNARY).to(dtype)
    x, counts = _drawn(6, 16).to(dtype), torch.tensor([2, 4])
    results = []
    for precision in (dtype, torch.float32):
        inputs = x.to(precision).clone().requires_grad_()
        y = linear.to(precision)(inputs)
        y.sum().backward()
        assert y.dtype == precision and linear.weight.grad is not None and inputs.grad is not None
        results.append((y.float(), linear.weight.grad.float(), inputs.grad.float()))
        linear.weight.grad = None
        output = experts.to(precision)(x.to(precision), counts)
        output.sum().backward()
        assert output.dtype == precision and output.isfinite().all()
    for half, single in zip(*results, strict=True):
        scale = single.abs().max()
        torch.testing.assert_close(half / scale, single / scale, atol=2e-2, rtol=0.0)


def test_a_row_does_not_depend_on_others():
    x, linear = _drawn(6, 16), BitLinear(16, 8, bits=TERNARY)
    with torch.no_grad():
        assert torch.equal(linear(x)[2:3], linear(x[2:3]))
        assert torch.equal(linear(torch.cat([x, x * 1e4]))[:6], linear(x))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_each_expert_has_scales_of_its_own(activation: str, packed: bool) -> None:
    """Two experts, one with weights a hundred times those of the other; gate and value apart."""
    experts = Experts(8, 12, 2, 0, activation, 0.0, 0, bits=TERNARY)
    with torch.no_grad():
        experts.w1[1].mul_(100.0)
    if packed:
        experts.eval().pack()
    x, counts = _drawn(7, 8), torch.tensor([3, 4])
    with torch.set_grad_enabled(not packed):
        y = experts(x, counts)
        up, down = experts.maps
        entry = find_activation(activation)
        for expert, rows in enumerate(x.split(counts.tolist())):
            hidden = _reference(rows, up[expert], experts.b1[expert, 0], experts.up_widths, TERNARY)
            hidden = entry.function(hidden)
            out = _reference(hidden, down[expert], experts.b2[expert, 0], [8], TERNARY)
            torch.testing.assert_close(y.split(counts.tolist())[expert], out, atol=1e-3, rtol=1e-3)


def test_an_idle_expert_has_gradients_of_zero():
    experts = Experts(8, 12, 2, 0, "relu", 0.0, 0, bits=TERNARY)
    experts(_drawn(4, 8), torch.tensor([4, 0])).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1].any()
        assert parameter.grad[0].any()


def test_weights_of_zero_and_inputs_of_zero_stay_finite():
    linear: Any = BitLinear(4, 3, bits=TERNARY)
    linear.draw_parameters()
    torch.nn.init.zeros_(linear.weight)
    y = linear(torch.zeros(2, 4, requires_grad=True))
    y.sum().backward()
    assert not y.any()
    assert linear.weight.grad.isfinite().all()
