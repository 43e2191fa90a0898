"""Shard a frozen model over all ranks if a single rank cannot hold it."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn

_SECTIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def shard_for_reading(model: nn.Module, device: torch.device) -> nn.Module:
    """Keep only a part of every matrix on this rank; a forward gathers layers one by one (ZeRO 3).

    A collective, and so is every forward of the result: all ranks must run the same number of
    forwards. Vectors stay whole, because gathering them would cost more than it saves (Rajbhandari
    et al., arXiv:1910.02054).

    Args:
        model: a frozen model in evaluation mode, the same on every rank, with all weights of one
            floating-point type. It may be on the CPU, from which parameters are moved one at a
            time. It is changed in place and cannot be used afterwards.
        device: device of this rank.

    Returns:
        The module to call in place of `model`.
    """
    parameters = list(model.parameters())
    longest_vector = max((p.numel() for p in parameters if p.dim() < 2), default=0)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # unused without training, but required
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": longest_vector,
        },
    }
    if (section := _SECTIONS.get(parameters[0].dtype)) is not None:
        config[section] = {"enabled": True}
    # partition before building the engine, which would first move the whole model to the device
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for buffers in (module.named_buffers(recurse=False) for module in model.modules()):
        for _, buffer in buffers:
            buffer.data = buffer.data.to(device)
    engine: nn.Module = deepspeed.initialize(model=model, config=config)[0]
    engine.eval()
    return engine
