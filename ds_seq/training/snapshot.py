"""A state of a training in host memory: what this rank writes of a checkpoint.

Reading the state is a collective, because ZeRO partitions it. Writing a snapshot is not, so it can
be done while training goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ds_seq import distributed
from ds_seq.training.engine import Engine
from ds_seq.training.resume_state import NO_STATE
from ds_seq.training.state import WEIGHT, FullState
from ds_seq.weights.fill import expert_offsets, persistent_buffers
from ds_seq.weights.meta import EMA
from ds_seq.weights.source import expert_key


class HostMemory:
    """Copies tensors to host memory.

    Args:
        is_kept: use the same memory for the next copy of a tensor of the same name. Memory that
            the process has used before is filled about six times faster than fresh memory, whose
            pages the kernel has to clear. The last copy must then be of no use any more.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._copies: dict[str, Tensor] = {}

    def copy(self, key: str, value: Tensor) -> Tensor:
        """Return a copy of a tensor that shares memory with no other, as safetensors wants it."""
        if not self._is_kept:
            return value.detach().to("cpu", copy=True).contiguous()
        held = self._copies.get(key)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            held = self._copies[key] = value.detach().to("cpu", copy=True).contiguous()
            return held
        return held.copy_(value.detach())


@dataclass(frozen=True)
class Snapshot:
    """This rank's share of a state.

    Attributes:
        tensors: kind of file -> name -> tensor in host memory.
        absent: names of optimizer tensors that do not exist.
        facts: what `checkpoint.json` says about the state, except the absent tensors of all ranks.
    """

    tensors: dict[str, dict[str, Tensor]]
    absent: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


def take(
    engine: Engine, criterion: Mapping[str, Tensor], progress: dict[str, Any], memory: HostMemory
) -> Snapshot:
    """Gather every tensor in turn and copy this rank's share. A collective.

    The ranks that hold a parameter take turns, and the first rank has the buffers, which all ranks
    hold.

    Args:
        engine: the engine whose weights, optimizer and schedule are copied.
        criterion: state of the criterion; no two ranks pass the same name.
        progress: state of everything else, serializable as JSON.
        memory: where the copies are.
    """
    state, offsets = FullState(engine.deepspeed), expert_offsets(engine.module)
    share = _Share(memory)
    for name, tensor in criterion.items():
        share.add("criterion", name, tensor)
    optimizer_state = state.state_names() if engine.schedule.updates else ()
    for index, (name, parameter) in enumerate(engine.module.named_parameters()):
        first = offsets.get(name)
        is_writer = _is_writer(index, spread=first is not None, engine=engine)
        # a frozen parameter has no optimizer state, but is part of the model
        for key in (WEIGHT, *optimizer_state):
            slot = name if key == WEIGHT else f"{key}/{name}"
            value = None
            if key == WEIGHT or parameter.requires_grad:
                value = state.read(parameter, key)  # a collective: every rank reads, one copies
            if value is None:
                share.absent.append(slot)
            elif is_writer:
                share.add("weights" if key == WEIGHT else "optimizer", slot, value, first)
    if distributed.rank() == 0:
        for name, buffer in persistent_buffers(engine.module):
            share.add("weights", name, buffer)
    facts = {
        **_take_average(engine, state, share),
        "written_by": _layout(engine),
        "optimizer": _optimizer_facts(engine, state),
        "loss_scaler": engine.loss_scaler_state(),
        "progress": copy.deepcopy(progress),  # training goes on and changes it
    }
    return Snapshot(share.tensors, share.absent, facts)


def _take_average(engine: Engine, state: FullState, share: _Share) -> dict[str, Any]:
    """Copy the average of the trained weights if there is one, and return its facts."""
    if engine.ema is None:
        return {}
    offsets = expert_offsets(engine.module)
    with engine.ema.as_fp32_weights():
        for index, (name, parameter) in enumerate(engine.module.named_parameters()):
            first = offsets.get(name)
            value = state.read(parameter, WEIGHT) if parameter.requires_grad else None
            if value is not None and _is_writer(index, first is not None, engine):
                share.add(EMA, name, value, first)
    return {EMA: {"updates": engine.ema.updates}}


class _Share:
    """Collects this rank's tensors."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self.tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        self.absent: list[str] = []

    def add(self, kind: str, slot: str, value: Tensor, first_expert: int | None = None) -> None:
        """Copy a tensor, or each expert of one whose first expert has the given global index."""
        rows = [(slot, value)]
        if first_expert is not None:
            count = value.shape[0]
            rows = [(expert_key(slot, first_expert + row), value[row]) for row in range(count)]
        target = self.tensors.setdefault(kind, {})
        for key, row in rows:
            target[key] = self._memory.copy(f"{kind}/{key}", row)


def _is_writer(index: int, spread: bool, engine: Engine) -> bool:
    """Return whether this rank writes parameter `index`.

    All ranks take turns with dense parameters; the ranks that hold the same experts take turns with
    those.
    """
    ranks = engine.expert_parallel if spread else 1
    replicas = distributed.world_size() // ranks
    return index % replicas == distributed.rank() // ranks


def _layout(engine: Engine) -> dict[str, Any]:
    return {
        "world_size": distributed.world_size(),
        "expert_parallel": engine.expert_parallel,
        "zero_stage": engine.zero_stage,
    }


def _optimizer_facts(engine: Engine, state: FullState) -> dict[str, Any]:
    return {
        "name": type(engine.deepspeed.basic_optimizer).__name__,
        "steps": state.steps(),
        "state": list(state.state_names()),
        "schedule_updates": engine.schedule.updates,
        NO_STATE: [],
    }
