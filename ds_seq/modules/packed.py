"""Constant weights, packed into the layout that kernels read fastest.

For CPUs only. In float32 and bfloat16, the results differ only by the order of the sums. In 8 bits
(dynamic quantization: Bhandare et al., 2019, "Efficient 8-Bit Quantization of Transformer Neural
Machine Language Translation Model", https://arxiv.org/abs/1906.00532) each row of a weight and all
inputs of a call are rounded to 255 levels, so the result of a row depends slightly on the other
rows of the call.

Shapes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 2**18
"""Multiplications below which calling oneDNN (13 us) costs more than its faster product saves: a
row of 512 x 512, five of 192 x 256."""

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
_LARGE = 2**18  # results R x O of a product
_HAS_BF16 = _HAS_PACKING and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Float:
    """A packed weight for oneDNN, which otherwise reorders the weight in every product.

    Reordering takes 5% of the time for 640 rows, a third for 20 rows, and more than half for 5 rows
    (512 x 2048, one thread). Sums are in float32; the inputs have the format of the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._small = weight.clone() if weight.numel() <= _SMALL else None
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """See `Packed`."""
        if self._small is not None and x.numel() * len(self._small) <= _SMALL:
            product = F.linear(x, self._small, self._bias)
            return product.relu_() if activation == "relu" else product
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, activation, [], ""
        )
        return y


class _Int8:
    """An 8-bit integer weight with one scale per output; 2 to 4 times as fast as `_Float`.

    FBGEMM starts sooner, oneDNN has no table of sums between the product and its result. On one
    core of an AMD EPYC (Zen 4), FBGEMM takes 0.3 to 0.8 of oneDNN's time for 5 to 40 rows. For more
    than `_LARGE` results they are equal at widths of 512, and oneDNN takes 0.5 to 0.6 of the time
    for scores of a vocabulary. Both round alike.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, is_brief: bool = False) -> None:
        # an output with zero weights needs a scale, too
        scales = (weight.abs().amax(1) / 127.0).clamp(min=1e-12).double()
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            # PyTorch has deprecated quantized tensors, but its kernels take nothing else yet
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        # without 8-bit instructions, sums of two products overflow 16 bits
        self._reduce_range = not torch.cpu._is_vnni_supported()
        self._outputs = len(weight)
        has_large = "onednn" in torch.backends.quantized.supported_engines
        use_large = has_large and not self._reduce_range
        large = _prepacked("onednn", rounded, bias) if use_large else None
        # packing takes as long as many products, so a map of few calls has one layout
        is_enough = is_brief and large is not None
        self._small = large if is_enough else _prepacked("x86", rounded, bias)
        self._large = self._small if large is None else large

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """See `Packed`."""
        kernels = torch.ops.quantized
        kernel = kernels.linear_relu_dynamic if activation == "relu" else kernels.linear_dynamic
        is_large = x.numel() // x.size(-1) * self._outputs > _LARGE
        weight = self._large if is_large else self._small
        y: Tensor = kernel(x, weight, reduce_range=self._reduce_range)
        return y


def _prepacked(engine: str, rounded: Tensor, bias: Tensor | None) -> Any:
    """Return a weight in the layout of `engine`, which this process may use for nothing else."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        return torch.ops.quantized.linear_prepack(rounded, bias)
    finally:
        torch.backends.quantized.engine = before


def pack_alike(weight: Tensor, bias: Tensor | None, packed: Packed | None) -> Packed | None:
    """Pack a linear map for a batch of sentences in the way of a packed one, or None like that."""
    if isinstance(packed, _Int8):
        return _Int8(weight, bias, is_brief=True)
    return None if packed is None else pack(weight, bias)


def pack(weight: Tensor, bias: Tensor | None, int8: bool = False) -> Packed | None:
    """Pack a linear map; later changes of weight and bias have no effect on the result.

    Args:
        weight: (O, I).
        bias: (O,) or None.
        int8: whether to round the weight to 8 bits.

    Returns:
        The packed map, or None if it would not be faster: neither fp32 nor bf16, not on a CPU, or
        oneDNN has no kernels for it.

    Raises:
        ValueError: `int8`, but no kernel supports the weight or the processor.
    """
    on_cpu = weight.device.type == "cpu"
    if int8 and not (on_cpu and weight.dtype == torch.float32):
        raise ValueError(f"8 bits: {weight.dtype} on {weight.device}; use float32 on a CPU")
    if int8 and not _HAS_INT8:
        raise ValueError("8 bits: PyTorch has no 8-bit kernels for this processor")
    has_kernel = {torch.float32: _HAS_PACKING, torch.bfloat16: _HAS_BF16}.get(weight.dtype, False)
    if not on_cpu or not (int8 or has_kernel):
        return None
    weight = weight.detach().contiguous()
    bias = None if bias is None else bias.detach().contiguous()
    return _Int8(weight, bias) if int8 else _Float(weight, bias)
