"""What the DeepSpeed engine must know of our MoE layers: the only file of this package that imports
    it.

The engine (0.19) recognizes expert parallelism in two ways: a module of its own MoE classes
somewhere in the model, and attributes of the parameters. We give it the smallest module it accepts,
a marker without parameters, and set the attributes; router, dispatch, experts and checkpoints stay
ours. `tests/distributed/test_engine_contract.py` holds DeepSpeed to this.
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
    """Makes `isinstance` checks of the engine see an expert-parallel layer; holds nothing."""

    def __init__(self, num_experts: int) -> None:
        nn.Module.__init__(self)  # the base class would build gate and experts of its own
        self.num_experts = num_experts

    def set_deepspeed_parallelism(self, *args: Any, **kwargs: Any) -> None:
        """Groups were made by `connect_expert_parallel`, before the engine asks for them."""


def connect_expert_parallel(model: nn.Module, expert_parallel: int) -> None:
    """Spread the experts of `model` over groups of `expert_parallel` consecutive ranks.

    A collective: every rank calls it, after the process group is up and before
    `deepspeed.initialize`. Does nothing for `expert_parallel` 1, where experts are ordinary
    parameters to the engine, or for a model without MoE layers.
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
            # attributes that the engine's gradient reduction and the ZeRO optimizers read
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = name  # type: ignore[attr-defined]
            parameter.ds_zero_placement_family = "autoep_expert"  # type: ignore[attr-defined]
            parameter.ds_zero_partition_group_name = name  # type: ignore[attr-defined]


def unmark_frozen_experts(model: nn.Module) -> None:
    """Take the markers away if no expert of `model` is trained; for ZeRO stages 0 to 2.

    An engine that sees a marker insists on experts in the optimizer. Without one it still knows
    experts by their attributes. Stage 3 does not insist, but needs markers to cut experts right.
    """
    layers = [module for module in model.modules() if isinstance(module, MoeFeedForward)]
    experts = (parameter for layer in layers for parameter in layer.experts.parameters())
    if any(parameter.requires_grad for parameter in experts):
        return
    for layer in layers:
        if hasattr(layer, "engine_marker"):
            del layer.engine_marker


def expert_parallel_group(expert_parallel: int) -> dist.ProcessGroup:
    """The ranks that together hold one copy of all experts, this rank among them."""
    name = _group_name(expert_parallel)
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(expert_parallel)
    group: dist.ProcessGroup = groups._get_expert_parallel_group(name)
    return group


def expert_data_parallel_group(expert_parallel: int) -> dist.ProcessGroup:
    """The ranks that hold the same experts as this one."""
    expert_parallel_group(expert_parallel)
    group: dist.ProcessGroup = groups._get_expert_data_parallel_group(_group_name(expert_parallel))
    return group


def split_expert_groups(parameter_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give experts optimizer groups of their own: ZeRO partitions them over other ranks."""
    named = [{"name": f"group{i}", **group} for i, group in enumerate(parameter_groups)]
    split: list[dict[str, Any]] = split_params_into_different_moe_groups_for_optimizer(named)
    return [group for group in split if group["params"]]


def _group_name(expert_parallel: int) -> str:
    return f"ep_size_{expert_parallel}"
