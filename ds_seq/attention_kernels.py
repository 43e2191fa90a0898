"""Which of torch's attention kernels a process may use."""

from __future__ import annotations

import os

import torch


def avoid_cudnn_attention() -> None:
    """Take cuDNN off the list of attention kernels, unless the environment says how to use it.

    On Hopper GPUs torch asks cuDNN first, which prepares a plan for every new shape of a batch, and
    batches by tokens have ever new shapes. On an NVIDIA H200 (torch 2.11, cuDNN 9.19) forward and
    backward took 115 to 5,500 ms for a new shape and 1.1 to 1.5 ms for a known one; torch's own
    memory-efficient kernel took 0.9 to 1.0 ms for known shapes and new ones alike.
    ``TORCH_CUDNN_SDPA_DEPRIORITIZED`` is torch's variable for the order of the kernels: who sets
    it, to 0 or 1, gets torch's behavior.
    """
    if "TORCH_CUDNN_SDPA_DEPRIORITIZED" not in os.environ:
        torch.backends.cuda.enable_cudnn_sdp(False)
