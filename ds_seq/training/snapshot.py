"""A state of a training in host memory: what this rank writes of a checkpoint.

ZeRO cuts tensors into slices, but files hold whole tensors. While training waits, each rank copies
only what it holds: what it will write itself, and what it will send to the ranks that write the
rest. `Snapshot.assemble` sends and receives, which can be done while training goes on. A rank needs
memory for its share of the files, for its slices of other shares, and for one message.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.distributed.exchange import Exchange
from ds_seq.training.engine import Engine
from ds_seq.training.resume_state import NO_STATE
from ds_seq.training.slices import HostMemory, Mail, fill_rows
from ds_seq.training.state import WEIGHT, FullState, full_shape
from ds_seq.weights.fill import expert_offsets, persistent_buffers
from ds_seq.weights.meta import EMA
from ds_seq.weights.source import expert_key


@dataclass(frozen=True)
class Snapshot:
    """This rank's share of a state.

    Attributes:
        tensors: kind of file -> name -> tensor in host memory; complete after `assemble`.
        absent: names of optimizer tensors that do not exist.
        mail: slices on their way between ranks.
        facts: what `checkpoint.json` says about the state, except the absent tensors of all ranks.
    """

    tensors: dict[str, dict[str, Tensor]]
    absent: list[str]
    mail: Mail
    facts: dict[str, Any] = field(default_factory=dict)

    def assemble(self, exchange: Exchange) -> None:
        """Get the slices of other ranks. All ranks call it, before they write `tensors`.

        Raises:
            UserError: another rank cannot be reached.
        """
        self.mail.deliver(exchange)


def take(
    engine: Engine,
    criterion: Mapping[str, Tensor],
    progress: dict[str, Any],
    memory: HostMemory,
    exchange: Exchange,
) -> Snapshot:
    """Copy what this rank holds. A collective.

    The ranks that hold a parameter take turns to write it, and the first rank writes the buffers,
    which all ranks hold.

    Args:
        engine: the engine whose weights, optimizer and schedule are copied.
        criterion: state of the criterion; no two ranks pass the same name.
        progress: state of everything else, serializable as JSON.
        memory: where the copies are.
        exchange: opened here if ranks have slices for each other.
    """
    state, offsets = FullState(engine.deepspeed), expert_offsets(engine.module)
    share = _Share(state, engine.expert_parallel, memory)
    for name, tensor in criterion.items():
        share.add("criterion", name, tensor)
    parameters = list(engine.module.named_parameters())
    if share.learn_extents([parameter for _, parameter in parameters]):
        exchange.open()
    optimizer_state = state.state_names() if engine.schedule.updates else ()
    for index, (name, parameter) in enumerate(parameters):
        first = offsets.get(name)
        share.add_part(_Part(index, parameter, WEIGHT, "weights", name, first))
        for key in optimizer_state:
            # a frozen parameter has no optimizer state, but is part of the model
            if parameter.requires_grad:
                part = _Part(index, parameter, key, "optimizer", f"{key}/{name}", first)
                share.add_part(part)
            else:
                share.absent.append(f"{key}/{name}")
    if distributed.rank() == 0:
        for name, buffer in persistent_buffers(engine.module):
            share.add("weights", name, buffer)
    average = _take_average(engine, share)
    share.mail.pack()
    facts = {
        **average,
        "written_by": _layout(engine),
        "optimizer": _optimizer_facts(engine, state),
        "loss_scaler": engine.loss_scaler_state(),
        "progress": copy.deepcopy(progress),  # training goes on and changes it
    }
    return Snapshot(share.tensors, share.absent, share.mail, facts)


class _Part(NamedTuple):
    """A tensor of a parameter, and where it goes."""

    number: int
    """Number of the parameter in the model."""
    parameter: nn.Parameter
    name: str
    """Which of its tensors, see `FullState.read`."""
    kind: str
    """Kind of the file."""
    slot: str
    """Name of the tensor in the file."""
    first_expert: int | None
    """Global index of its first expert; None: it has no experts."""


def _take_average(engine: Engine, share: _Share) -> dict[str, Any]:
    """Copy the average of the trained weights if there is one, and return its facts."""
    if engine.ema is None:
        return {}
    offsets = expert_offsets(engine.module)
    with engine.ema.as_fp32_weights():
        for index, (name, parameter) in enumerate(engine.module.named_parameters()):
            if parameter.requires_grad:
                part = _Part(index, parameter, WEIGHT, EMA, name, offsets.get(name))
                share.add_part(part, is_lent=True)
    return {EMA: {"updates": engine.ema.updates}}


class _Share:
    """Collects this rank's tensors, and its slices of those of others."""

    def __init__(self, state: FullState, expert_parallel: int, memory: HostMemory) -> None:
        self._state, self._expert_parallel, self._memory = state, expert_parallel, memory
        self._rank, self._world = distributed.rank(), distributed.world_size()
        self._extents = torch.empty(0)
        self.tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        self.absent: list[str] = []
        self.mail = Mail(memory)

    def learn_extents(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Learn which slices each rank holds; return whether there are any. A collective."""
        is_cut = [self._state.is_cut(parameter) for parameter in parameters]
        if not any(is_cut):
            return False
        extents = [
            self._state.extent(parameter) if cut else (0, 0)
            for parameter, cut in zip(parameters, is_cut, strict=True)
        ]
        self._extents = torch.stack(distributed.gather_pieces([torch.tensor(extents).T]))
        return self._world > 1

    def add(self, kind: str, slot: str, value: Tensor, first_expert: int | None = None) -> None:
        """Copy a tensor, or each expert of one whose first expert has the given global index."""
        rows = self._rows(kind, slot, value.shape, value.dtype, first_expert)
        for row, part in zip(rows, [value] if first_expert is None else value, strict=True):
            row.copy_(part.detach())

    def add_part(self, part: _Part, is_lent: bool = False) -> None:
        """Copy a tensor of a parameter, or this rank's slice of it.

        All ranks take turns to write dense parameters; the ranks that hold the same experts take
        turns with those.

        Args:
            part: the tensor.
            is_lent: whether it may change before the mail is packed.
        """
        spread = 1 if part.first_expert is None else self._expert_parallel
        replicas = self._world // spread
        writer = part.number % replicas * spread + self._rank % spread
        if self._state.is_cut(part.parameter):
            holders = range(self._rank % spread, self._world, spread)
            self._add_slice(part, writer, holders, is_lent)
            return
        value = self._state.read(part.parameter, part.name)
        if value is None:
            self.absent.append(part.slot)
        elif writer == self._rank:
            self.add(part.kind, part.slot, value, part.first_expert)

    def _add_slice(self, part: _Part, writer: int, holders: Sequence[int], is_lent: bool) -> None:
        """Copy this rank's slice, or send it to the rank that writes the tensor."""
        start, length = self._state.extent(part.parameter)
        values = self._state.read_slice(part.parameter, part.name)
        if writer != self._rank:
            if length:
                self.mail.send(writer, values.to("cpu", copy=True) if is_lent else values)
            return
        shape = full_shape(part.parameter)
        rows = self._rows(part.kind, part.slot, shape, values.dtype, part.first_expert)
        fill_rows(rows, start, values)
        of_ranks = self._extents[:, :, part.number].tolist()
        for rank in holders:
            if rank != self._rank and of_ranks[rank][1]:
                self.mail.expect(rank, rows, *of_ranks[rank])
        covered = sum(of_ranks[rank][1] for rank in holders)
        assert covered == shape.numel(), f"{part.slot}: slices hold {covered} of {shape.numel()}"

    def _rows(
        self,
        kind: str,
        slot: str,
        shape: torch.Size,
        dtype: torch.dtype,
        first_expert: int | None,
    ) -> list[Tensor]:
        """Return memory for a tensor of the file, or for each expert of one."""
        keys, row = [slot], shape
        if first_expert is not None:
            keys = [expert_key(slot, first_expert + number) for number in range(shape[0])]
            row = shape[1:]
        rows = [self._memory.empty(f"{kind}/{key}", row, dtype) for key in keys]
        self.tensors.setdefault(kind, {}).update(zip(keys, rows, strict=True))
        return rows


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
