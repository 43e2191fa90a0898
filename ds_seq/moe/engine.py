"""Make the DeepSpeed engine recognize our MoE layers.

This is the only file of the package that imports DeepSpeed. The engine (0.19) recognizes expert
parallelism by two signs: an instance of its own MoE classes in the model, and attributes of the
parameters. We add the smallest instance it accepts, a marker without parameters, and set the
attributes; router, dispatch, experts and checkpoints remain ours.
`tests/distributed/test_engine_contract.py` verifies that DeepSpeed keeps to this contract.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.utils import groups
from torch import nn

from ds_seq.moe.layer import MoeFeedForward


class _EngineMarker(AutoEPMoELayer):  # type: ignore[misc]  # deepspeed is untyped
    """Satisfy the engine's `isinstance` checks for expert-parallel layers; holds no parameters."""

    def __init__(self, num_experts: int) -> None:
        nn.Module.__init__(self)  # the base class would build its own gate and experts
        self.num_experts = num_experts

    def set_deepspeed_parallelism(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `connect_expert_parallel` has already created the groups."""


def connect_expert_parallel(model: nn.Module, expert_parallel: int) -> None:
    """Distribute the experts of `model` over groups of `expert_parallel` consecutive ranks.

    A collective operation: every rank must call it, after the process group is initialized and
    before `deepspeed.initialize`. It does nothing if `expert_parallel` is 1, where experts are
    ordinary parameters of the engine, or if the model has no MoE layers.
    """
    layers = [module for module in model.modules() if isinstance(module, MoeFeedForward)]
    if expert_parallel == 1 or not layers:
        return
    group = expert_parallel_group(expert_parallel)
    name = _group_name(expert_parallel)
    for layer in layers:
        layer.group = group
        layer.engine_marker = _EngineMarker(layer.num_experts)
        for parameter in layer.experts.parameters():
            # read by the engine's gradient reduction and by the ZeRO optimizers
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = name  # type: ignore[attr-defined]
            parameter.ds_zero_placement_family = "autoep_expert"  # type: ignore[attr-defined]
            parameter.ds_zero_partition_group_name = name  # type: ignore[attr-defined]


def unmark_frozen_experts(model: nn.Module) -> None:
    """Remove the markers if no expert of `model` is trained; for ZeRO stages 0 to 2.

    If there is a marker, the engine requires experts in the optimizer. Without one, it still
    recognizes experts by their attributes. Stage 3 does not require them, but needs the markers to
    partition experts correctly.
    """
    layers = [module for module in model.modules() if isinstance(module, MoeFeedForward)]
    experts = (parameter for layer in layers for parameter in layer.experts.parameters())
    if any(parameter.requires_grad for parameter in experts):
        return
    for layer in layers:
        if hasattr(layer, "engine_marker"):
            del layer.engine_marker


def expert_parallel_group(expert_parallel: int) -> dist.ProcessGroup:
    """Return the group of ranks that together hold one copy of all experts, including this rank."""
    name = _group_name(expert_parallel)
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(expert_parallel)
    group: dist.ProcessGroup = groups._get_expert_parallel_group(name)
    return group


def expert_data_parallel_group(expert_parallel: int) -> dist.ProcessGroup:
    """Return the group of ranks that hold the same experts as this rank."""
    expert_parallel_group(expert_parallel)
    group: dist.ProcessGroup = groups._get_expert_data_parallel_group(_group_name(expert_parallel))
    return group


def split_expert_groups(parameter_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put experts into separate optimizer groups, because ZeRO partitions them over other ranks."""
    named = [{"name": f"group{i}", **group} for i, group in enumerate(parameter_groups)]
    split: list[dict[str, Any]] = split_params_into_different_moe_groups_for_optimizer(named)
    return [group for group in split if group["params"]]


def _group_name(expert_parallel: int) -> str:
    return f"ep_size_{expert_parallel}"
