"""Settings of the process for its device: attention kernels on a GPU, freed memory on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


def avoid_cudnn_attention() -> None:
    """Take cuDNN off the list of attention kernels, unless the environment says how to use it.

    On Hopper GPUs torch asks cuDNN first, which prepares a plan for every new shape of a batch, and
    batches by tokens have ever new shapes. On an NVIDIA H200 (torch 2.11, cuDNN 9.19) forward and
    backward took 115 to 5,500 ms for a new shape and 1.1 to 1.5 ms for a known one; torch's own
    memory-efficient kernel took 0.9 to 1.0 ms for known shapes and new ones alike.
    `TORCH_CUDNN_SDPA_DEPRIORITIZED` is torch's variable for the order of the kernels: who sets
    it, to 0 or 1, gets torch's behavior.
    """
    if "TORCH_CUDNN_SDPA_DEPRIORITIZED" not in os.environ:
        torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks instead of handing them back to the kernel.

    On a CPU every step frees and allocates the same hundreds of megabytes. glibc gives each large
    block back at once, and the kernel zeroes fresh pages for the next one: a sixth of the processor
    time of a training step (`benchmarks/README.md`). Memory in use then stays at its peak. Does
    nothing for a process with a GPU, or on another C library.
    """
    if torch.cuda.is_available() or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)  # no block of its own mapping, which could only be unmapped
    mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap
