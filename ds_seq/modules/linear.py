"""Linear maps that use the fastest available kernel.

On x86 CPUs, PyTorch uses MKL for fp32 matrix products, which takes its slower AVX2 path on
processors not made by Intel. oneDNN, also part of PyTorch, uses AVX-512 on all of them. On an AMD
EPYC (Zen 5), it is about twice as fast, forward and backward. It builds a kernel for each new
shape, in 0.4 to 1.1 ms. Batches of training hardly ever have the same number of tokens, so small
products of training stay with MKL.

Processors without fp16 instructions multiply fp16 matrices 10 to 15 times more slowly than fp32
ones, so there they are converted. Sums are in fp32 in both cases, and results rounded to fp16.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds_seq.modules.packed import HAS_ONEDNN, Packed, pack, pack_alike

if TYPE_CHECKING:
    from ds_seq.modules.multiway import Ways

_HALF_IS_SLOW = not torch.ops.mkldnn._is_mkldnn_fp16_supported()
_SMALL = 2**23  # multiplications R x I x O: MKL takes 0.1 to 0.3 ms


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    packed: Packed | None = None,
) -> Tensor:
    """Apply `x @ weight.T + bias`, like `torch.nn.functional.linear`, and an activation.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.
        activation: `relu` or `none`.
        packed: weight and bias packed by `pack`; used if no gradient is needed.

    Returns:
        (..., O).
    """
    if _HALF_IS_SLOW and x.dtype == weight.dtype == torch.float16 and x.device.type == "cpu":
        bias = None if bias is None else bias.float()
        return linear(x.float(), weight.float(), bias, activation).half()
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        if _serves(x, weight) and x.numel() * weight.size(0) > _SMALL:
            # A view, because ZeRO stage 2 needs gradients in the same order on ranks with fewer
            # rows: that of the bias comes first there, as the weight is transposed.
            y: Tensor = _OneDnnLinear.apply(x, weight.view_as(weight), bias)
        else:
            y = F.linear(x, weight, bias)
        return F.relu(y) if activation == "relu" else y
    return product(x, weight, bias, activation, packed)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    packed: Packed | None = None,
) -> Tensor:
    """Apply `linear` outside of autograd, for functions with their own gradient.

    Args:
        x: (..., I).
        weight: (O, I); a transposed view costs little.
        bias: (O,) or None.
        activation: `relu` or `none`.
        packed: weight and bias packed by `pack`.
    """
    if packed is not None and x.numel() > 0:
        return packed(x, activation)
    if _serves(x, weight):
        return _product(x, weight, bias, activation)
    y = F.linear(x, weight, bias)
    return y.relu_() if activation == "relu" else y


def some_outputs(
    weight: Tensor, bias: Tensor | None, packed: Packed | None, outputs: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the map to some of the outputs of `linear`, for many calls.

    Args:
        weight: (O, I).
        bias: (O,) or None.
        packed: weight and bias packed by `pack`; the new map is packed alike.
        outputs: (O',) int64, the outputs in the order of the results.

    Returns:
        (..., I) -> (..., O').
    """
    rows = weight.index_select(0, outputs)
    few = None if bias is None else bias.index_select(0, outputs)
    packed_rows = pack_alike(rows, few, packed)
    return lambda x: linear(x, rows, few, packed=packed_rows)


def _serves(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN should compute the product: non-empty fp32 on an x86 CPU."""
    return (
        HAS_ONEDNN
        and x.dtype == torch.float32
        and weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """Return `x @ weight.T + bias`; `weight` may be a transposed view at no cost."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return out


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` as `linear` computes it in training, outside of autograd."""
    serves = _serves(x, weight) and x.numel() * weight.size(0) > _SMALL
    return _product(x, weight) if serves else F.linear(x, weight)


def outer(grad: Tensor, x: Tensor) -> Tensor:
    """Return `grad.T @ x` for grad (R, O) and x (R, I), outside of autograd.

    oneDNN copies the first factor, so the narrower one is put first.
    """
    if not _serves(grad, x):
        return grad.t() @ x
    if grad.size(1) <= x.size(1):
        return _product(grad.t(), x.t())
    return _product(x.t(), grad.t()).t()


class _OneDnnLinear(torch.autograd.Function):
    """A linear map whose forward and gradients are oneDNN products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.size(-1))  # (R, O)
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = _product(grad, weight.t())
        if needs_weight:
            grad_weight = outer(rows, x.reshape(-1, x.size(-1)))
        if ctx.has_bias and needs_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def by_set(module: Any, x: Tensor, ways: Ways | None) -> Tensor:
    """Apply a linear map or norm to x (B, T, ...), or that of each token's set, if it has sets."""
    y: Tensor = module(x) if ways is None else module(x, ways)
    return y


class LinearMaker(Protocol):
    """Makes a linear map, with the arguments of `Linear`."""

    def __call__(
        self,
        in_features: int,
        out_features: int,
        *,
        parts: int | Sequence[int] = 1,
        gain: float = 1.0,
        bias: bool = ...,
    ) -> Linear:
        """Return a map of `in_features` inputs to `out_features` outputs.

        Without `bias`, the maker decides whether there is one.
        """
        ...


class Linear(nn.Linear):
    """`torch.nn.Linear` with the kernel of `linear` and its own initialization.

    Args:
        in_features: number of inputs, I.
        out_features: number of outputs, O.
        bias: whether there is a bias.
        parts: number of fused maps of equal width, or their widths; each is drawn as a separate
            map.
        gain: gain of Xavier's uniform distribution.
        deviation: deviation of a normal distribution to draw from instead, or None.
    """

    _packed: Packed | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        parts: int | Sequence[int] = 1,
        gain: float = 1.0,
        deviation: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.widths = [out_features // parts] * parts if isinstance(parts, int) else list(parts)
        self.gain, self.deviation = gain, deviation

    def draw_parameters(self) -> None:
        """Draw a new weight and set the bias to zero, see `ds_seq.models.init`."""
        if self.deviation is not None:
            nn.init.normal_(self.weight, std=self.deviation)
        else:
            for part in self.weight.split(self.widths, dim=0):
                nn.init.xavier_uniform_(part, self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def pack(self, int8: bool = False) -> None:
        """Use a packed copy from now on, see `ds_seq.modules.packed`."""
        self._packed = pack(self.weight, self.bias, int8)

    def scorer(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map to some outputs (O',), see `some_outputs`."""
        return some_outputs(self.weight, self.bias, self._packed, outputs)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """Map x (..., I) to (..., O); `activation` may be `relu`."""
        return linear(x, self.weight, self.bias, activation, self._packed)


def maps_of(module: nn.Module) -> list[Linear]:
    """Return a linear map, or those of its sets of parameters."""
    return [each for each in module.modules() if isinstance(each, Linear)]
