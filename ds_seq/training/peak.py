"""The peak speed of a device, against which the use of its arithmetic (MFU) is measured."""

from __future__ import annotations

import time

import torch

from ds_seq.distributed import number_format
from ds_seq.names import Precision

# Part of the name of a GPU -> TFLOP/s of dense matrix products, in half precision, in fp32 and in
# TF32, from NVIDIA's data sheets. More special names come first.
_GPUS: list[tuple[str, float, float, float]] = [
    ("B200", 2250.0, 75.0, 1125.0),
    ("GH200", 989.4, 66.9, 494.7),
    ("H200", 989.4, 66.9, 494.7),
    ("H100 PCIe", 756.0, 51.2, 378.0),
    ("H100 NVL", 835.5, 60.0, 417.7),
    ("H100", 989.4, 66.9, 494.7),
    ("H800", 989.4, 66.9, 494.7),
    ("A100", 312.0, 19.5, 156.0),
    ("A800", 312.0, 19.5, 156.0),
    ("L40S", 362.0, 91.6, 183.0),
    ("L40", 181.0, 90.5, 90.5),
    ("L4", 121.0, 30.3, 60.0),
    ("A40", 149.7, 37.4, 74.8),
    ("A30", 165.0, 10.3, 82.0),
    ("A10", 125.0, 31.2, 62.5),
    ("V100", 125.0, 15.7, 15.7),
    ("T4", 65.0, 8.1, 8.1),
]
_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_SIZES: dict[Precision, int] = {"fp32": 512, "bf16": 512, "fp16": 128}
_TIMES = 5


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Return the FLOP/s that a device can reach; None for a GPU that is not known.

    Args:
        device: a known GPU, or the CPU, on which matrix products are timed, for milliseconds.
        precision: number format of the products.
    """
    if device.type == "cuda":
        rounds = number_format(precision, device) != precision
        return _of_gpu(torch.cuda.get_device_name(device), precision, rounds)
    size = _SIZES[precision]
    factors = torch.ones(size, size, dtype=_DTYPES[precision])
    best = float("inf")
    for _ in range(_TIMES):
        began = time.perf_counter()
        factors @ factors
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def _of_gpu(name: str, precision: Precision, tf32: bool) -> float | None:
    for part, half, full, rounded in _GPUS:
        if part in name:
            return 1e12 * (half if precision != "fp32" else rounded if tf32 else full)
    return None
