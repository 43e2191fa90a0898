"""Tables of the keys of a DeepSpeed JSON: where each belongs and whether it is supported.

DeepSpeed silently accepts unknown top-level keys, so the known ones are listed here. A test
compares the nested ones with DeepSpeed's own config models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["bool", "int", "number", "text", "list"]
Keys = Mapping[str, "Kind | Keys"]

OWNED: Mapping[str, str] = {
    "train_batch_size": "train.max_tokens and train.accumulate (batches are sized by tokens)",
    "train_micro_batch_size_per_gpu": "train.max_tokens (batches are sized by tokens)",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_clipping": "train.clip_norm",
    "steps_per_print": "train.log_every",
    "seed": "train.seed",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "tensorboard": "train.tensorboard",
    "expert_parallel": "train.expert_parallel",
}
"""Top-level keys that belong in the experiment file, and their names there."""

OWNED_BELOW: Mapping[str, Mapping[str, str]] = {
    "fp16": {"enabled": "train.precision: fp16", "auto_cast": "train.precision: fp16"},
    "bf16": {"enabled": "train.precision: bf16"},
}
"""Keys below passed sections that belong in the experiment file."""

FIXED: Mapping[str, bool] = {
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
"""Always set by ds_seq: its optimizers are torch's, which DeepSpeed considers untested."""

_NORMALISES = "the gradient is normalized by tokens in ds_seq"
_NO_OTHER_ENGINE = "ds_seq does not use it"

REFUSED: Mapping[str, str] = {
    "amp": "use train.precision",
    "torch_autocast": "use train.precision",
    "bfloat16": "spell it bf16",
    "gradient_allreduce_op": _NORMALISES,
    "managed_gradient_accumulation": _NORMALISES,
    "wandb": "ds_seq writes TensorBoard and JSONL",
    "csv_monitor": "ds_seq writes TensorBoard and JSONL",
    "comet": "ds_seq writes TensorBoard and JSONL",
    "use_data_before_expert_parallelism": "ds_seq arranges the expert-parallel groups itself",
    "sequence_parallel_size": _NO_OTHER_ENGINE,
    "tensor_parallel": _NO_OTHER_ENGINE,
    "pipeline": _NO_OTHER_ENGINE,
    "hybrid_engine": _NO_OTHER_ENGINE,
    "data_efficiency": _NO_OTHER_ENGINE,
    "dataloader_drop_last": _NO_OTHER_ENGINE,
    "autotuning": _NO_OTHER_ENGINE,
}
"""Top-level keys of DeepSpeed that ds_seq does not support, and why."""

_OFFLOAD_PARAM: Keys = {
    "device": "text",
    "nvme_path": "text",
    "buffer_count": "int",
    "buffer_size": "int",
    "max_in_cpu": "int",
    "pin_memory": "bool",
}
_OFFLOAD_OPTIMIZER: Keys = {
    "device": "text",
    "nvme_path": "text",
    "buffer_count": "int",
    "pin_memory": "bool",
    "pipeline_read": "bool",
    "pipeline_write": "bool",
    "fast_init": "bool",
    "ratio": "number",
    "super_offload": "bool",
    "cpuadam_cores_perc": "number",
}

PASSED: Keys = {
    "zero_optimization": {
        "stage": "int",
        "contiguous_gradients": "bool",
        "reduce_scatter": "bool",
        "reduce_bucket_size": "int",
        "use_multi_rank_bucket_allreduce": "bool",
        "allgather_partitions": "bool",
        "allgather_bucket_size": "int",
        "overlap_comm": "bool",
        "load_from_fp32_weights": "bool",
        "elastic_checkpoint": "bool",
        "offload_param": _OFFLOAD_PARAM,
        "offload_optimizer": _OFFLOAD_OPTIMIZER,
        "sub_group_size": "int",
        "stage3_prefetch_bucket_size": "int",
        "stage3_param_persistence_threshold": "int",
        "stage3_model_persistence_threshold": "int",
        "stage3_max_live_parameters": "int",
        "stage3_max_reuse_distance": "int",
        "stage3_gather_16bit_weights_on_model_save": "bool",
        "stage3_module_granularity_threshold": "int",
        "stage3_use_all_reduce_for_fetch_params": "bool",
        "stage3_allgather_sequential": "bool",
        "ignore_unused_parameters": "bool",
        "round_robin_gradients": "bool",
        "zero_hpz_partition_size": "int",
        "zero_quantized_weights": "bool",
        "zero_quantized_nontrainable_weights": "bool",
        "zero_quantized_gradients": "bool",
        "memory_efficient_linear": "bool",
        "log_trace_cache_warnings": "bool",
        "enable_sanity_checks": "bool",
    },
    "fp16": {
        "loss_scale": "number",
        "initial_scale_power": "int",
        "loss_scale_window": "int",
        "hysteresis": "int",
        "consecutive_hysteresis": "bool",
        "min_loss_scale": "int",
        "fp16_master_weights_and_grads": "bool",
    },
    "bf16": {
        "immediate_grad_update": "bool",
        "check_grad_overflow": "bool",
        "bf16_master_weights_and_grads": "bool",
        "bf16_optimizer_states": "bool",
    },
    "data_types": {"grad_accum_dtype": "text"},
    "communication_data_type": "text",
    "prescale_gradients": "bool",
    "gradient_predivide_factor": "number",
    "disable_allgather": "bool",
    "activation_checkpointing": {
        "partition_activations": "bool",
        "cpu_checkpointing": "bool",
        "contiguous_memory_optimization": "bool",
        "number_checkpoints": "int",
        "synchronize_checkpoint_boundary": "bool",
        "profile": "bool",
    },
    "flops_profiler": {
        "enabled": "bool",
        "recompute_fwd_factor": "number",
        "profile_step": "int",
        "module_depth": "int",
        "top_modules": "int",
        "detailed": "bool",
        "output_file": "text",
    },
    "comms_logger": {
        "enabled": "bool",
        "verbose": "bool",
        "prof_all": "bool",
        "debug": "bool",
        "prof_ops": "list",
    },
    "timers": {"throughput": {"enabled": "bool", "synchronized": "bool"}},
    "wall_clock_breakdown": "bool",
    "memory_breakdown": "bool",
    "dump_state": "bool",
    "log_level": "text",
    "aio": {
        "block_size": "int",
        "queue_depth": "int",
        "intra_op_parallelism": "int",
        "single_submit": "bool",
        "overlap_events": "bool",
        "use_gds": "bool",
    },
    "checkpoint": {
        "tag_validation": "text",
        "load_universal": "bool",
        "use_node_local_storage": "bool",
        "parallel_write": {"pipeline_stage": "bool"},
    },
}
"""Keys that belong in the DeepSpeed JSON, with the kind of their values; nested as in the file."""

_LARGEST = 2**63 - 1
_BOUNDS: Mapping[str, tuple[float, float]] = {
    # a scale of 0 selects the dynamic one; a smaller one would set gradients to 0
    "loss_scale": (0, 2**32),
    "initial_scale_power": (0, 32),
    "min_loss_scale": (1, 2**32),
    # DeepSpeed divides by the window. It skips as many updates as the hysteresis before it lowers
    # the scale, and with 0 it never does
    "loss_scale_window": (1, _LARGEST),
    "hysteresis": (1, 100),
    "reduce_bucket_size": (1, _LARGEST),
    "ratio": (0, 1),
    "cpuadam_cores_perc": (0, 1),
    "gradient_predivide_factor": (2**-16, 2**16),
    "module_depth": (-1, _LARGEST),  # -1 shows all levels
}
"""Smallest and largest value of keys that do not take every number from 0 on."""

_KIND_NAMES: Mapping[Kind, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "text": "text",
    "list": "a list",
}


def wanted_instead(key: str, value: Any, kind: Kind) -> str | None:
    """Return what should be written instead of the value, or None if it makes sense."""
    if not is_kind(value, kind):
        return _KIND_NAMES[kind]
    if kind not in ("int", "number"):
        return None
    least, most = _BOUNDS.get(key, (0, _LARGEST))
    if least <= value <= most and not (key == "loss_scale" and 0 < value < 1):
        return None
    if key == "loss_scale":
        return f"0, or a number from 1 to {most:,}"
    return f"a finite number from {least:g}" + ("" if most == _LARGEST else f" to {most:,}")


def is_kind(value: Any, kind: Kind) -> bool:
    """Return whether a value of the JSON is of this kind."""
    if kind in ("bool", "text", "list"):
        return isinstance(value, {"bool": bool, "text": str, "list": list}[kind])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # bucket sizes are commonly written as 5e8
    return kind == "number" or isinstance(value, int) or value.is_integer()
