"""Put an engine that has trained back into the state of a checkpoint of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor

from ds_seq.criterions.base import Criterion
from ds_seq.training.engine import Engine
from ds_seq.training.restore import criterion_state, restore
from ds_seq.weights.fill import persistent_buffers, read_like
from ds_seq.weights.source import TensorFolder


@torch.no_grad()
def rewind(engine: Engine, criterion: Criterion, folder: Path) -> dict[str, Any]:
    """Load weights, optimizer, schedule, loss scale, buffers and criterion. A collective.

    Frozen weights stay, because training does not change them. The engine must be between two
    updates, where it holds no gradients.

    Args:
        engine: an engine in the same layout as ever; its weights may be anything.
        criterion: the loss.
        folder: folder of an undamaged checkpoint.

    Returns:
        The `progress` in the checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    _clear(engine)
    progress = restore(engine, folder, checked=True)
    weights = TensorFolder(folder, "weights", checked=True)
    for name, buffer in persistent_buffers(engine.module):
        buffer.copy_(read_like(weights, name, buffer.shape, buffer.dtype))
    round_weights(engine)
    criterion.load_state(criterion_state(folder, checked=True))
    return progress


def _clear(engine: Engine) -> None:
    """Set the state of the optimizer to zero: a checkpoint lacks what did not exist by then."""
    for state in engine.deepspeed.basic_optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def round_weights(engine: Engine) -> None:
    """Copy the fp32 weights to those of the model, as DeepSpeed does at the end of each step.

    A collective.
    """
    wrapper = engine.deepspeed.optimizer
    if wrapper is engine.deepspeed.basic_optimizer:  # stage 0 in fp32: they are the same
        return
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        for halves, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for half, master in zip(halves, masters, strict=True):
                half.data.copy_(master.data)
    elif engine.zero_stage < 3:
        wrapper.update_lp_params()
    else:
        for group in range(len(wrapper.fp16_partitioned_groups_flat)):
            wrapper._reassign_or_swap_out_partitioned_parameters(group)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
        wrapper.invalidate_secondary_tensor()
