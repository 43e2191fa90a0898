"""Fill an engine and a criterion from a checkpoint, whatever layout has written it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.training.engine import Engine
from ds_seq.training.resume_state import NO_STATE, EngineState
from ds_seq.training.state import WEIGHT, FullState, full_shape
from ds_seq.weights.fill import expert_offsets, read_like
from ds_seq.weights.meta import EMA, read_meta
from ds_seq.weights.source import TensorFolder, expert_key

if TYPE_CHECKING:
    from ds_seq.training.ema import Ema


def restore(engine: Engine, folder: Path, checked: bool = False) -> dict[str, Any]:
    """Load optimizer, fp32 weights, schedule and loss scale.

    The model's own weights, including frozen parameters and buffers, must already be loaded.

    Args:
        engine: an engine around the model that `load_weights` has filled from `folder`.
        folder: folder of the checkpoint.
        checked: see `TensorFolder`.

    Returns:
        The `progress` that was passed to `CheckpointStore.start`.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another model or optimizer.
    """
    meta = read_meta(folder, EngineState)
    state = FullState(engine.deepspeed)
    weights = TensorFolder(folder, "weights", checked)
    moments = TensorFolder(folder, "optimizer", checked)
    written = meta["optimizer"]
    if written["name"] != type(engine.deepspeed.basic_optimizer).__name__:
        raise UserError(
            f"{folder}: holds the state of {written['name']}, but the experiment sets "
            f"optimizer.name={type(engine.deepspeed.basic_optimizer).__name__.lower()}; "
            "use the optimizer of the checkpoint"
        )
    offsets = expert_offsets(engine.module)
    has_state = written["schedule_updates"] > 0  # an optimizer has no state before its first step
    if has_state:
        state.make_state()
    for name, parameter in state.parameters():
        shape, first = full_shape(parameter), offsets.get(name)
        state.write(parameter, WEIGHT, read_like(weights, name, shape, torch.float32, first))
        slots = {key: f"{key}/{name}" for key in written["state"]}
        for key in slots if has_state else ():
            if not _is_absent(moments, written, slots, key, first):
                # not by the parameter's shape: Adafactor's row and column sums have other shapes
                state.write(parameter, key, moments.read_stacked(slots[key], first, shape[0]))
    if engine.ema is not None:
        _restore_ema(engine.ema, state, offsets, folder, checked)
    weights.verify()
    moments.verify()
    if has_state:
        state.set_steps(written["steps"])
    engine.schedule.set_updates(written["schedule_updates"])
    engine.load_loss_scaler_state(meta["loss_scaler"])
    return meta["progress"]


def _restore_ema(
    ema: Ema, state: FullState, offsets: Mapping[str, int], folder: Path, checked: bool
) -> None:
    """Fill the average of the weights; without one in the checkpoint, it begins with these."""
    written = read_meta(folder, EngineState).get(EMA)
    if written is None:
        ema.restart()
        return
    # a parameter that was frozen until now has no average, but a weight
    averages = TensorFolder(folder, "weights", checked, replaced_by=EMA)
    with ema.as_fp32_weights():
        for name, parameter in state.parameters():
            first, shape = offsets.get(name), full_shape(parameter)
            value = read_like(averages, name, shape, torch.float32, first)
            state.write(parameter, WEIGHT, value)
    averages.verify()
    ema.updates = written["updates"]


def _is_absent(
    moments: TensorFolder,
    written: Mapping[str, Any],
    slots: Mapping[str, str],
    key: str,
    first_expert: int | None,
) -> bool:
    """Return whether a tensor of the optimizer did not exist when the checkpoint was written.

    A frozen parameter has no state, nor has one that never had a gradient, and Adafactor's depends
    on the parameter's shape. Older checkpoints do not record that; of Adam's or SGD's tensors, a
    parameter has all or none.
    """
    present = {
        other: (slot if first_expert is None else expert_key(slot, first_expert)) in moments
        for other, slot in slots.items()
    }
    if present[key]:
        return False
    if NO_STATE in written:
        return slots[key] in written[NO_STATE]
    return written["name"] == "Adafactor" or not any(present.values())


def criterion_state(folder: Path, checked: bool = False) -> dict[str, Tensor]:
    """Read the criterion's state from all ranks; empty if it had none.

    Args:
        folder: folder of the checkpoint.
        checked: see `TensorFolder`.

    Raises:
        UserError: the checkpoint is damaged.
    """
    stored = TensorFolder(folder, "criterion", checked)
    tensors = {name: stored.read(name) for name in sorted(stored.keys())}
    stored.verify()
    return tensors
