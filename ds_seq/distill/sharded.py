"""Spread a model that is only read over all ranks, where none of them can hold it alone."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn

_SECTIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def shard_for_reading(model: nn.Module, device: torch.device) -> nn.Module:
    """Leave this rank a part of every matrix; a forward gathers one layer at a time (ZeRO stage 3).

    A collective, and so is every forward of the result: all ranks call it equally often. Vectors
    stay whole, for a collective each would cost more than they weigh (Rajbhandari et al.,
    arXiv:1910.02054).

    Args:
        model: frozen and in evaluation mode, the same on every rank, all its weights of one
            floating-point type; it may be on the CPU, from where one parameter at a time travels.
            It is changed in place and of no other use afterwards.
        device: of this rank.

    Returns:
        What is called in place of ``model``.
    """
    parameters = list(model.parameters())
    longest_vector = max((p.numel() for p in parameters if p.dim() < 2), default=0)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # of no meaning without training, but asked for
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": longest_vector,
        },
    }
    if (section := _SECTIONS.get(parameters[0].dtype)) is not None:
        config[section] = {"enabled": True}
    # partitioned before there is an engine, which would first move the whole model to the device
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for buffers in (module.named_buffers(recurse=False) for module in model.modules()):
        for _, buffer in buffers:
            buffer.data = buffer.data.to(device)
    engine: nn.Module = deepspeed.initialize(model=model, config=config)[0]
    engine.eval()
    return engine
