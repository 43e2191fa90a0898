"""gpu.py: peak speed of the machine, and speed of each attention kernel of torch."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .bench import DTYPES, Bench
from .measure import median_ms, wall_ms

_BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def machine(bench: Bench) -> None:
    """Report versions and the two peaks: memory bandwidth and matrix products."""
    figures, device = bench.figures, bench.device
    figures.update(torch=torch.__version__, python=sys.version.split()[0])
    figures["sdpa_order"] = [int(x) for x in torch._C._get_sdp_priority_order()]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures.update(
            memory_gb=round(properties.total_memory / 1e9, 1),
            multiprocessors=properties.multi_processor_count,
            cudnn=torch.backends.cudnn.version(),
            nccl=".".join(map(str, torch.cuda.nccl.version())),
        )
    size = 256 if bench.sizes.tiny else 8192
    for name, dtype in DTYPES.items():
        figures[f"matmul_{name}_tflops"] = _matmul_tflops(size, dtype, device)
    torch.backends.cuda.matmul.allow_tf32 = True
    figures["matmul_tf32_tflops"] = _matmul_tflops(size, torch.float32, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    block = torch.empty(1 << (20 if bench.sizes.tiny else 31), dtype=torch.uint8, device=device)
    copy = torch.empty_like(block)
    seconds = median_ms(lambda: copy.copy_(block)) / 1e3
    figures["copy_tb_s"] = round(2 * block.numel() / seconds / 1e12, 3)
    _linear_maps(bench)


def _matmul_tflops(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return round(2 * size**3 / median_ms(lambda: a @ b) / 1e9, 1)


def _linear_maps(bench: Bench) -> None:
    """Measure TFLOP/s of the products of a Transformer layer."""
    d, f, rows = bench.sizes.model["d_model"], bench.sizes.model["ffn_dim"], bench.sizes.middle
    maps = {
        "qkv": (d, 3 * d),
        "out": (d, d),
        "up": (d, f),
        "down": (f, d),
        "vocabulary": (d, bench.sizes.vocab),
    }
    for name, (inputs, outputs) in maps.items():
        x, weight = (
            torch.randn(n, inputs, device=bench.device, dtype=torch.bfloat16)
            for n in (rows, outputs)
        )
        ms = median_ms(_linear(x, weight), repeats=5)
        bench.figures[f"linear_{name}_tflops"] = round(2 * rows * inputs * outputs / ms / 1e9, 1)


def _linear(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: F.linear(x, weight)


def attention(bench: Bench) -> None:
    """Time every backend of SDPA at shapes of training steps: first new shapes, then known ones."""
    lengths = (5, 6) if bench.sizes.tiny else (24, 25, 26)
    for kind in ("masked", "causal", "plain"):
        for name, backend in _BACKENDS.items():
            bench.figures[f"{kind}/{name}"] = _attention_times(bench, kind, backend, lengths)


def _attention_times(
    bench: Bench, kind: str, backend: SDPBackend | None, lengths: tuple[int, ...]
) -> dict[str, Any] | str:
    """Return times in ms, or the reason why there are none."""
    new, known = [], []
    chosen: AbstractContextManager[Any] = (
        contextlib.nullcontext() if backend is None else sdpa_kernel(backend)
    )
    try:
        with chosen:
            for length in lengths:
                run = _attention_call(bench, kind, length)
                new.append(round(wall_ms(run), 2))
                known.append(round(median_ms(run, 2, 5), 3))
    except RuntimeError as problem:  # this kernel does not support these inputs
        return str(problem).splitlines()[0][:120]
    return {"new_shape_ms": new, "known_shape_ms": known}


def _attention_call(bench: Bench, kind: str, length: int) -> Callable[[], None]:
    """Return a call that does forward and backward over all rows of a batch."""
    heads = bench.sizes.model["num_heads"]
    width = bench.sizes.model["d_model"] // heads
    rows = max(bench.sizes.middle // length, 1)
    shape, options = (rows, length, 3, heads, width), {"dtype": torch.bfloat16}
    x = torch.randn(shape, device=bench.device, **options, requires_grad=True)
    mask = None
    if kind == "masked":
        mask = torch.zeros(rows, 1, 1, length, device=bench.device, **options)
        mask[::3, ..., -2:] = -math.inf

    def run() -> None:
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, mask, 0.0, kind == "causal")
        y.backward(torch.ones_like(y))

    return run
