"""gpu.py: times on a device, memory, waits for the device, and shares of kernels."""

from __future__ import annotations

import collections
import gc
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode

Call = Callable[[], object]

_WAITING = ("_local_scalar_dense", "aten.nonzero.default", "is_nonzero")
_OURS = ("/ds_seq/", "/deepspeed/", "/benchmarks/")
_KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa", "mha"),
    "matmul": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "addmm", "matmul", "::mm", "linear"),
    "optimizer": ("adam", "multi_tensor", "foreach"),
    "norm": ("layer_norm", "layernorm", "norm_backward", "gammabeta"),
    "softmax": ("softmax",),
    "dropout": ("dropout", "philox", "bernoulli"),
    "reduce": ("reduce",),
    "index, sort": ("index", "gather", "scatter", "sort", "embedding", "scan", "radix"),
    "copy": ("memcpy", "memset", "copy", "catarray"),
    "collective": ("nccl",),
    "elementwise": ("elementwise", "vectorized", "unrolled"),
}
"""Parts of kernel names; the first match decides."""


def sync() -> None:
    """Wait for all work of the GPU; do nothing without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def wall_ms(call: Call) -> float:
    """Return milliseconds of one call on an idle device."""
    sync()
    begun = time.perf_counter()
    call()
    sync()
    return 1e3 * (time.perf_counter() - begun)


def median_ms(call: Call, warmup: int = 3, repeats: int = 10) -> float:
    """Return median milliseconds of a call, measured by device events on a GPU."""
    for _ in range(warmup):
        call()
    sync()
    time_once = _event_ms if torch.cuda.is_available() else wall_ms
    return statistics.median(time_once(call) for _ in range(repeats))


def _event_ms(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def peak_gb() -> float:
    """Return the peak memory of tensors since `clear`; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def clear() -> None:
    """Free unused memory and reset the peak."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def out_of_memory(error: BaseException) -> bool:
    """Whether the error reports lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def count_waits(call: Call) -> dict[str, int]:
    """Count waits of a call for the device by place in the source, most frequent first.

    On a GPU these are CUDA's own warnings; on a CPU, the operators that would wait.
    """
    if not torch.cuda.is_available():
        with _Waits() as waits:
            call()
        return dict(waits.found.most_common())
    found: collections.Counter[str] = collections.Counter()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchron" in str(warning.message).lower():
            found[f"{_place(warning.filename)}:{warning.lineno}"] += 1
    return dict(found.most_common())


class _Waits(TorchDispatchMode):
    """Record the operators that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(sign in name for sign in _WAITING):
            stack = reversed(traceback.extract_stack()[:-1])
            frames = (f for f in stack if any(part in f.filename for part in _OURS))
            frame = next(frames, None)
            where = "" if frame is None else f" {_place(frame.filename)}:{frame.lineno}"
            self.found[name + where] += 1
        return func(*args, **(kwargs or {}))


def _place(filename: str) -> str:
    return "/".join(Path(filename).parts[-3:])


def profile(call: Call, rows: int = 15) -> dict[str, Any]:
    """Profile one call.

    Args:
        call: function to profile.
        rows: number of kernels to list individually.

    Returns:
        Duration of the call under the profiler, busy time of the device, number of launches,
        milliseconds by kind of kernel, and the longest kernels.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    sync()
    with torch.profiler.profile(activities=activities) as profiler:
        wall = wall_ms(call)
    events = profiler.key_averages()

    def own_ms(event: Any) -> float:
        return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3

    # only kernels and copies: operators would count their kernels again
    kernels = [e for e in events if not on_gpu or str(e.device_type).endswith("CUDA")]
    kernels.sort(key=own_ms, reverse=True)
    busy = sum(map(own_ms, kernels))
    kinds: collections.Counter[str] = collections.Counter()
    for event in kernels:
        kinds[kind_of(event.key)] += own_ms(event)  # type: ignore[assignment]
    return {
        "wall_ms_profiled": round(wall, 2),
        "busy_ms": round(busy, 2),
        "launches": sum(e.count for e in events if "LaunchKernel" in e.key),
        "kinds_ms": {kind: round(ms, 3) for kind, ms in kinds.most_common()},
        "top": [
            {
                "name": event.key[:110],
                "ms": round(own_ms(event), 3),
                "calls": event.count,
                "share": round(own_ms(event) / max(busy, 1e-9), 4),
            }
            for event in kernels[:rows]
        ],
    }


def kind_of(name: str) -> str:
    """Return the kind of work of a kernel, by its name."""
    low = name.lower()
    for kind, signs in _KINDS.items():
        if any(sign in low for sign in signs):
            return kind
    return "other"
