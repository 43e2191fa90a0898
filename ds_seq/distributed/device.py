"""Process settings for its device: kernels on a GPU, memory allocation on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ds_seq import environment
from ds_seq.names import Precision

# variables by which NVIDIA's libraries and torch let users decide about TF32
_TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def choose_gpu_kernels() -> None:
    """Configure PyTorch for a process that uses a GPU."""
    avoid_cudnn_attention()
    allow_tf32()


def allow_tf32() -> None:
    """Let matrix products in fp32 round their factors to TF32, unless the environment decides.

    TF32 has the range of fp32 and the 10 bits of fp16 after the leading one; sums stay fp32. On an
    NVIDIA H200, 8192 x 8192 matrices are multiplied at 391 instead of 51 TFLOP/s. Products in half
    precision are not affected. `NVIDIA_TF32_OVERRIDE=0` in the environment keeps full fp32.
    """
    if not any(name in os.environ for name in _TF32_VARIABLES):
        torch.backends.cuda.matmul.allow_tf32 = True


def number_format(precision: Precision, device: torch.device) -> str:
    """Describe the arithmetic of a model on a device, for people."""
    rounds = device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return "fp32 with products in TF32" if precision == "fp32" and rounds else precision


@contextmanager
def full_fp32() -> Iterator[None]:
    """Compute matrix products in the block in full fp32, for choices between close numbers.

    Their gradients are computed after the block, and are not affected.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32
    if not allowed:
        yield
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True


def avoid_cudnn_attention() -> None:
    """Disable cuDNN attention, unless the environment configures it.

    On Hopper GPUs torch prefers cuDNN, which builds a plan for every new batch shape, and batches
    sized by tokens constantly have new shapes. On an NVIDIA H200 (torch 2.11, cuDNN 9.19) forward
    and backward took 115 to 5,500 ms for a new shape and 1.1 to 1.5 ms for a known one; torch's
    memory-efficient kernel took 0.9 to 1.0 ms for both known and new shapes.
    If `TORCH_CUDNN_SDPA_DEPRIORITIZED`, torch's variable for the order of the kernels, is set to 0
    or 1, torch's behavior is kept.
    """
    if "TORCH_CUDNN_SDPA_DEPRIORITIZED" not in os.environ:
        torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory in a process without a GPU; see `ds_seq.environment`.

    On a CPU every step frees and allocates the same hundreds of megabytes, which takes a sixth of
    the CPU time of a training step otherwise (`benchmarks/README.md`).
    """
    if not torch.cuda.is_available():
        environment.keep_freed_memory()


def keep_few_kernels(has_experts: bool) -> None:
    """Bound the memory of kernels in a training or a server on a CPU; see `ds_seq.environment`.

    Hardly any two batches have the same shapes, so that new kernels are prepared in every update. A
    dense model uses up to 80 of them between two uses of the same one. Experts see few row counts,
    but about as many as there are experts, and with 128 or 256 kernels a training with 32 experts
    took 1.6 times as long.

    Args:
        has_experts: whether layers of the model have experts.
    """
    if not torch.cuda.is_available():
        environment.keep_few_kernels(1024 if has_experts else 128)
