"""What we rely on inside DeepSpeed; a release that changes it fails here first, with a name."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from ds_seq.models.build import build_seq2seq
from ds_seq.moe.engine import (
    connect_expert_parallel,
    expert_data_parallel_group,
    expert_parallel_group,
)
from ds_seq.moe.layer import MoeFeedForward
from tests.distributed import spine
from tests.distributed.harness import run_distributed

_ZERO_METHODS = (
    "get_grad_norm_direct",
    "complete_grad_norm_calculation_for_cpu_offload",
    "_update_scale",
)


def test_the_cpu_communication_helper_can_be_switched_off() -> None:
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__


@pytest.mark.parametrize(
    ("wrapper", "methods"),
    [
        (DeepSpeedZeroOptimizer, (*_ZERO_METHODS, "check_overflow")),
        (DeepSpeedZeroOptimizer_Stage3, _ZERO_METHODS),
        (BF16_Optimizer, ("get_grads_for_norm",)),
        (FP16_UnfusedOptimizer, ("unscale_and_clip_grads", "_update_scale")),
    ],
)
def test_the_functions_that_we_replace_exist(wrapper: type, methods: tuple[str, ...]) -> None:
    """`training/clipping.py` and `training/loss_scale.py` replace these on the wrapper."""
    for name in methods:
        assert callable(vars(wrapper).get(name)), f"{wrapper.__name__}.{name}"


def _inspect(stage: int) -> dict[str, Any]:
    engine = spine.make_engine(stage, 2)
    spine.train(engine, range(1))
    inner, wrapper = engine.deepspeed, engine.deepspeed.optimizer
    experts = {id(p) for n, p in engine.module.named_parameters() if ".experts." in n}
    groups = [group for group in inner.basic_optimizer.param_groups if group.get("moe")]
    return {
        "has_moe_layers": inner.has_moe_layers,
        "expert_groups": len(groups),
        "num_experts_parameters": len(experts),
        "helper_compiled": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"],
        "links": hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"),
        "slots": hasattr(wrapper, "_get_fp32_opt_state_partition"),
        "group_sizes": (
            dist.get_world_size(expert_parallel_group(2)),
            dist.get_world_size(expert_data_parallel_group(2)),
        ),
    }


def _inspect_all(stages: tuple[int, ...]) -> list[dict[str, Any]]:
    return [_inspect(stage) for stage in stages]


def test_the_engine_sees_expert_parallelism() -> None:
    stages = (1, 3)
    found = run_distributed(_inspect_all, 2, stages)
    for stage, seen in [pair for of_rank in found for pair in zip(stages, of_rank, strict=True)]:
        assert seen["has_moe_layers"] and seen["expert_groups"] > 0
        assert seen["num_experts_parameters"] == 4 * 2  # w1, b1, w2, b2 of two layers
        assert seen["helper_compiled"] is False
        assert seen["links" if stage == 1 else "slots"]
        assert seen["group_sizes"] == (2, 1)


def _groups_of_four() -> tuple[list[int], list[int]]:
    model = build_seq2seq(spine.model_config(), spine.VOCAB, 2, dist.get_rank() % 2, seed=1)
    connect_expert_parallel(model, 2)
    layer = next(module for module in model.modules() if isinstance(module, MoeFeedForward))
    assert layer.group is not None
    return (
        dist.get_process_group_ranks(layer.group),
        dist.get_process_group_ranks(expert_data_parallel_group(2)),
    )


def test_experts_are_spread_over_neighbors_and_copied_across() -> None:
    assert run_distributed(_groups_of_four, 4) == [
        ([0, 1], [0, 2]),
        ([0, 1], [1, 3]),
        ([2, 3], [0, 2]),
        ([2, 3], [1, 3]),
    ]


def test_an_unconnected_expert_parallel_layer_says_so() -> None:
    model = build_seq2seq(spine.model_config(), spine.VOCAB, 2, 0, seed=1)
    batch = spine.batches(0)[0]
    with pytest.raises(RuntimeError, match="connect_expert_parallel"):
        model(batch.inputs)
