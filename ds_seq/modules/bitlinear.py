"""Linear maps with weights of one or two bits and rounded inputs, trained with both.

BitNet b1.58 (Ma et al., 2024, https://arxiv.org/abs/2402.17764; code in "The Era of 1-bit LLMs:
Training Tips, Code and FAQ") and BitNet (Wang et al., 2023, https://arxiv.org/abs/2310.11453)::

    ternary:  b = mean |W|,  W' = clip(round(W / b), -1, 1)
    binary:   b = mean |W|,  W' = 1 where W > mean W, else -1
    inputs:   n = norm(x),  m = max |n| of the token,  q = round(n (Q - 1) / m),  Q = 2^(bits - 1)
    output:   y = (q W'^T) b m / (Q - 1) + bias

with b and m at least 1e-5. Gradients pass both roundings unchanged (straight-through): those of the
inputs meet the weights `b W'`, those of the weights the inputs `q m / (Q - 1)`.

The matrix product multiplies `q / Q` and `W'`. Both are exact in every precision, fp16 cannot
overflow, and in float32 all sums are exact: the result depends neither on the order of the sums nor
on the kernel, so that 8-bit integer kernels return exactly the same. Scales are float32 whatever
the precision of the model, and the mean of a matrix is summed in float64.

A fused map (queries, keys and values; gate and value) has one scale for each of its parts, as if
these were matrices of their own, and each expert has its own.

Shapes: R rows, I inputs, O outputs, P parts of a fused map, ... more dimensions (experts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_seq.modules.linear import Linear, matmul, outer
from ds_seq.modules.packed import Packed
from ds_seq.names import BitNorm, BitWeights

_SMALLEST = 1e-5  # of both scales
_EPS = 1e-5  # of the norm of the inputs


class Bits(NamedTuple):
    """How weights and inputs are rounded.

    Attributes:
        weights: values of the weights.
        activation_bits: bits of the inputs; None: not rounded.
        norm: norm of the inputs, without parameters.
    """

    weights: BitWeights
    activation_bits: int | None
    norm: BitNorm

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        widths: Sequence[int],
        activation: str = "none",
        packed: Packed | None = None,
    ) -> Tensor:
        """Apply the map of the module's description.

        Args:
            x: (..., I).
            weight: (O, I), in full precision.
            bias: (O,) or None.
            widths: outputs of each part; their sum is O.
            activation: `relu` or `none`.
            packed: the map, packed by `pack`; used if no gradient is needed.

        Returns:
            (..., O), in the dtype of `x`.
        """
        needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if packed is not None and not needs_gradient and x.numel() > 0:
            return packed(x, activation)
        levels, scale = self.round_inputs(x)
        y: Tensor = _Product.apply(levels, weight, widths, self.weights)  # type: ignore[no-untyped-call]
        return _finish(y, scale, bias, activation, x.dtype)

    def pack(
        self,
        weight: Tensor,
        bias: Tensor | None,
        widths: Sequence[int],
        scales: Tensor | None = None,
    ) -> Packed:
        """Round a matrix once for many calls, with exactly the same results.

        Args:
            weight: (O, I).
            bias: (O,) or None.
            widths: outputs of each part.
            scales: (P,) scales if `weight` has been rounded before; None: not yet.
        """
        return _PackedBits(self, weight.detach(), bias, widths, scales)

    def rounded(
        self, weight: Tensor, widths: Sequence[int], transposed: bool = False
    ) -> RoundedParameter:
        """Round a parameter.

        Args:
            weight: (..., O, I).
            widths: outputs of each part.
            transposed: whether the parameter itself is laid out as (..., I, O).
        """
        signs, scales = round_weight(weight, widths, self.weights)
        if transposed:
            return RoundedParameter(signs.mT, scales, self.weights, -1, widths)
        return RoundedParameter(signs, scales, self.weights, -2, widths)

    def round_inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return levels (..., I) in [-1, 1] in the dtype of `x`, and their scales (..., 1)."""
        normed = self.normed(x)
        if self.activation_bits is None:
            return normed.to(x.dtype), None
        levels, scale = _RoundRows.apply(normed, self.activation_bits, x.dtype)  # type: ignore[no-untyped-call]
        return levels, scale

    def normed(self, x: Tensor) -> Tensor:
        """Return the normed inputs in float32; without a norm, the inputs as they are."""
        if self.norm == "rms":
            return F.rms_norm(x.float(), x.shape[-1:], None, _EPS)
        if self.norm == "layer":
            return F.layer_norm(x.float(), x.shape[-1:], None, None, _EPS)
        return x


class RoundedWeight(NamedTuple):
    """A matrix of few values."""

    signs: Tensor
    """(..., O, I): -1, 0 or 1."""
    scales: Tensor
    """(..., P) float32: one for each part."""


class RoundedParameter(NamedTuple):
    """A rounded parameter of a module, in the layout of the parameter."""

    signs: Tensor
    """(..., O, I), or (..., I, O): -1, 0 or 1."""
    scales: Tensor
    """(..., P) float32: one for each part."""
    values: BitWeights
    axis: Literal[-2, -1]
    """The dimension of the outputs: -2 or -1."""
    widths: Sequence[int]
    """Outputs of each part."""


@torch.no_grad()
def round_weight(weight: Tensor, widths: Sequence[int], kind: BitWeights) -> RoundedWeight:
    """Round matrices.

    Args:
        weight: (..., O, I).
        widths: outputs of each part of a matrix; their sum is O.
        kind: values of the result.

    Returns:
        The signs in the dtype of `weight`, and their scales.
    """
    signs, scales = [], []
    for part in weight.split(list(widths), dim=-2):
        scale = part.abs().mean((-2, -1), keepdim=True, dtype=torch.float64)
        scale = scale.float().clamp(min=_SMALLEST)
        if kind == "ternary":
            # round(W / b) clipped to 1 is the sign, unless W / b is at most 1/2, which is even
            signs.append((part.float() / scale).round_().clamp_(-1.0, 1.0).to(part.dtype))
        else:
            middle = part.mean((-2, -1), keepdim=True, dtype=torch.float64).float()
            signs.append((part.float() > middle).to(part.dtype).mul_(2).sub_(1))
        scales.append(scale[..., 0])
    joined = signs[0] if len(signs) == 1 else torch.cat(signs, -2)
    return RoundedWeight(joined, torch.cat(scales, -1))


def signs_of(weight: Tensor, kind: BitWeights) -> Tensor:
    """Return the signs of a matrix that has been rounded before, in its dtype."""
    return weight.sign() if kind == "ternary" else (weight > 0).to(weight.dtype).mul_(2).sub_(1)


class _PackedBits:
    """See `Bits.pack`; with 8-bit integer products where the processor has instructions for them.

    On an AMD EPYC (Zen 5, one thread, 512 x 2048), the integer product alone took a fifth to two
    thirds of the time of packed float32 weights (`ds_seq.modules.packed`). Norm and rounding of the
    inputs come on top, see `benchmarks/bit_maps.py`.
    """

    def __init__(
        self,
        bits: Bits,
        weight: Tensor,
        bias: Tensor | None,
        widths: Sequence[int],
        scales: Tensor | None,
    ) -> None:
        self._bits = bits
        if scales is None:
            signs, scales = round_weight(weight, widths, bits.weights)
        else:
            signs = signs_of(weight, bits.weights)
        self._scales = scale_of_outputs(scales.to(weight.device), widths)
        self._bias = None if bias is None else bias.detach().float()
        self._uses_int8 = (
            bits.activation_bits is not None
            and weight.device.type == "cpu"
            and torch.cpu._is_vnni_supported()
        )
        self._signs = signs.to(torch.int8).t() if self._uses_int8 else signs

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """See `ds_seq.modules.packed.Packed`."""
        if not self._uses_int8:
            levels, scale = self._bits.round_inputs(x)
            y = matmul(levels, self._signs).float().mul_(self._scales)
            return _finish(y, scale, self._bias, activation, x.dtype)
        assert self._bits.activation_bits is not None
        whole, step = _whole(self._bits.normed(x), self._bits.activation_bits)
        sums = torch._int_mm(whole.to(torch.int8).view(-1, x.size(-1)), self._signs)
        y = (sums * self._scales).view(*x.shape[:-1], -1)
        return _finish(y, step, self._bias, activation, x.dtype)


def scale_of_outputs(scales: Tensor, widths: Sequence[int]) -> Tensor:
    """Repeat the scales (..., P) of the parts for their outputs, (..., O)."""
    if len(widths) == 1:
        return scales.expand(*scales.shape[:-1], widths[0])
    times = torch.tensor(list(widths), device=scales.device)
    return scales.repeat_interleave(times, -1, output_size=sum(widths))


def _finish(
    y: Tensor, scale: Tensor | None, bias: Tensor | None, activation: str, dtype: torch.dtype
) -> Tensor:
    """Apply the scales of the inputs, bias and activation in float32."""
    if not y.requires_grad:  # y is nobody else's
        y = y if scale is None else y.mul_(scale)
        y = y if bias is None else y.add_(bias)
        return (y.relu_() if activation == "relu" else y).to(dtype)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias.float()
    y = y.relu() if activation == "relu" else y
    return y.to(dtype)


def _whole(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return x (..., I) in whole steps, in float32, and the step (..., 1) of each row."""
    x = x.float()
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
    step = largest.clamp_(min=_SMALLEST).div_(2 ** (bits - 1) - 1)
    return x.div(step).round_(), step


class _RoundRows(torch.autograd.Function):
    """Round each row to levels; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        whole, step = _whole(x.detach(), bits)
        full = float(2 ** (bits - 1))
        levels, scale = whole.div_(full).to(dtype), step * full
        ctx.mark_non_differentiable(scale)
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        return levels, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors  # the gradient of levels has been multiplied by it
        return (grad.float() / scale).to(ctx.dtype), None, None


class _Product(torch.autograd.Function):
    """`levels @ W'^T b` in float32; the gradient of `W` is that of `b W'`.

    The backward rounds the weight again. Otherwise each layer would keep a second weight between
    forward and backward, also under ZeRO stage 3, which frees the first.
    """

    @staticmethod
    def forward(
        ctx: Any, levels: Tensor, weight: Tensor, widths: Sequence[int], kind: BitWeights
    ) -> Tensor:
        ctx.save_for_backward(levels, weight)
        ctx.widths, ctx.kind = widths, kind
        signs, scales = round_weight(weight, widths, kind)
        return matmul(levels, signs).float() * scale_of_outputs(scales, widths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        levels, weight = ctx.saved_tensors
        grad_levels = grad_weight = None
        if ctx.needs_input_grad[0]:
            signs, scales = round_weight(weight, ctx.widths, ctx.kind)
            scaled = (grad * scale_of_outputs(scales, ctx.widths)).to(levels.dtype)
            grad_levels = matmul(scaled, signs.t())
        if ctx.needs_input_grad[1]:
            rows = grad.reshape(-1, grad.size(-1)).to(levels.dtype)  # (R, O)
            grad_weight = outer(rows, levels.reshape(-1, levels.size(-1))).to(weight.dtype)
        return grad_levels, grad_weight, None, None


class BitLinear(Linear):
    """`Linear` whose weight and inputs are rounded whenever it is applied.

    Args:
        in_features: number of inputs, I.
        out_features: number of outputs, O.
        bias: whether there is a bias.
        parts: see `Linear`; each part has a scale of its own.
        gain: see `Linear`.
        bits: how weights and inputs are rounded.
    """

    _scales: Tensor | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        parts: int | Sequence[int] = 1,
        gain: float = 1.0,
        bits: Bits,
    ) -> None:
        super().__init__(in_features, out_features, bias, parts=parts, gain=gain)
        self.bits = bits

    def pack(self, int8: bool = False) -> None:
        """Round the weight once, see `Bits.pack`; `int8` changes nothing."""
        self._packed = self.bits.pack(self.weight, self.bias, self.widths, self._scales)

    def rounded_parameters(self) -> dict[str, RoundedParameter]:
        """See `ds_seq.weights.packed.HoldsBits`."""
        return {"weight": self.bits.rounded(self.weight, self.widths)}

    def restore_scales(self, scales: Mapping[str, Tensor]) -> None:
        """See `ds_seq.weights.packed.HoldsBits`."""
        self._scales = scales["weight"]
        self.pack()

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """Map x (..., I) to (..., O); `activation` may be `relu`."""
        return self.bits.linear(x, self.weight, self.bias, self.widths, activation, self._packed)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.bits.weights}"
