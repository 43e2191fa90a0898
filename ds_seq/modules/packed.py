"""Constant weights, packed into the layout that kernels read fastest.

For CPUs only. In single precision, the results differ only by the order of the sums. In 8 bits
(dynamic quantization: Bhandare et al., 2019, "Efficient 8-Bit Quantization of Transformer Neural
Machine Language Translation Model", https://arxiv.org/abs/1906.00532) each row of a weight and all
inputs of a call are rounded to 255 levels, so the result of a row depends slightly on the other
rows of the call.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Packed = Callable[[Tensor, str], Tensor]
"""(x (..., I), activation `relu` or `none`) -> (..., O): the linear map with its bias."""

HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether PyTorch's oneDNN supports fp32 products on this processor."""

_HAS_PACKING = HAS_ONEDNN and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
_HAS_INT8 = hasattr(torch, "quantize_per_channel") and (
    "x86" in torch.backends.quantized.supported_engines
)


class _Float:
    """A packed weight for oneDNN, which otherwise reorders the weight in every product.

    Reordering takes 5% of the time for 640 rows, a third for 20 rows, and more than half for 5 rows
    (512 x 2048, one thread).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """See `Packed`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, activation, [], ""
        )
        return y


class _Int8:
    """An 8-bit integer weight with one scale per output; 2 to 3 times as fast as `_Float`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # an output with zero weights needs a scale, too
        scales = (weight.abs().amax(1) / 127.0).clamp(min=1e-12).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            # PyTorch has deprecated quantized tensors, but its kernels take nothing else yet
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._weight = torch.ops.quantized.linear_prepack(rounded, bias)
        # without 8-bit instructions, sums of two products overflow 16 bits
        self._reduce_range = not torch.cpu._is_vnni_supported()

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """See `Packed`."""
        kernels = torch.ops.quantized
        kernel = kernels.linear_relu_dynamic if activation == "relu" else kernels.linear_dynamic
        y: Tensor = kernel(x, self._weight, reduce_range=self._reduce_range)
        return y


def pack(weight: Tensor, bias: Tensor | None, int8: bool = False) -> Packed | None:
    """Pack a linear map; later changes of weight and bias have no effect on the result.

    Args:
        weight: (O, I).
        bias: (O,) or None.
        int8: whether to round the weight to 8 bits.

    Returns:
        The packed map, or None if it would not be faster: not fp32, not on a CPU, no oneDNN.

    Raises:
        ValueError: `int8`, but no kernel supports the weight or the processor.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        if int8:
            raise ValueError(f"8 bits: {weight.dtype} on {weight.device}; use float32 on a CPU")
        return None
    weight = weight.detach().contiguous()
    bias = None if bias is None else bias.detach().contiguous()
    if int8:
        if not _HAS_INT8:
            raise ValueError("8 bits: PyTorch has no 8-bit kernels for this processor")
        return _Int8(weight, bias)
    return _Float(weight, bias) if _HAS_PACKING else None
