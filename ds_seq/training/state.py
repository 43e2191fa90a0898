"""Full fp32 weights and optimizer state of every parameter, in any DeepSpeed layout.

ZeRO partitions them into flat slices, the fp16 wrapper keeps separate copies, and stage 0 leaves
them whole. `FullState` gives one view of all of these, by parameter and by name of the state, so
that a checkpoint does not depend on the layout that wrote it. Reading a whole tensor is a
collective: all ranks read the same tensors in the same order; an expert is read by all ranks that
hold it. A rank reads its own slice of a tensor without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from ds_seq.config.deepspeed import MAX_STAGE

WEIGHT = "weight"
"""Name of the fp32 weight itself, next to the optimizer's own state names."""


class FullState:
    """The fp32 weights and the optimizer state of an engine, between two updates.

    Args:
        engine: a `DeepSpeedEngine` that owns a torch optimizer.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._stage = int(engine.zero_optimization_stage())
        self._wrapper = engine.optimizer
        self._torch_optimizer: torch.optim.Optimizer = engine.basic_optimizer
        self._masters = _unfused_masters(self._wrapper)
        self._linked = False

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield trainable parameters with their names, in the order of the model."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def state_names(self) -> tuple[str, ...]:
        """Return names of the optimizer's per-parameter tensors, the same for all parameters."""
        if isinstance(self._torch_optimizer, torch.optim.Adam):  # AdamW is an Adam
            return ("exp_avg", "exp_avg_sq")
        if isinstance(self._torch_optimizer, torch.optim.SGD):
            has_momentum = any(group["momentum"] for group in self._torch_optimizer.param_groups)
            return ("momentum_buffer",) if has_momentum else ()
        if self._sliced:
            raise ValueError(
                f"{type(self._torch_optimizer).__name__}: unknown state under ZeRO {self._stage}"
            )
        states = self._torch_optimizer.state.values()
        return tuple(
            sorted(
                {
                    k
                    for state in states
                    for k, v in state.items()
                    if isinstance(v, Tensor) and k != "step"
                }
            )
        )

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """Return the fp32 tensor that stage 0 optimizes for `parameter`; often the same tensor."""
        return self._masters.get(id(parameter), parameter)

    @property
    def _sliced(self) -> bool:
        return self._stage > 0

    def read(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """Return the whole tensor of `parameter`; `None` if there is none yet. A collective.

        A frozen parameter has only a weight.
        """
        if not parameter.requires_grad:
            return self._frozen(parameter)
        if not self._sliced:
            master = self._master(parameter)
            if name == WEIGHT:
                return master.detach()
            value: Tensor | None = self._torch_optimizer.state.get(master, {}).get(name)
            return value
        self._link_slices()
        if name == WEIGHT:
            return _shaped(safe_get_full_fp32_param(parameter), parameter)
        return _shaped(safe_get_full_optimizer_state(parameter, name), parameter)

    def is_cut(self, parameter: nn.Parameter) -> bool:
        """Whether ranks hold slices of the tensors of `parameter`, and none holds them whole."""
        return self._stage == MAX_STAGE or (self._sliced and parameter.requires_grad)

    def extent(self, parameter: Any) -> tuple[int, int]:
        """Return start and length of this rank's slice of the flattened tensors of `parameter`.

        The slices of all ranks that hold the parameter cover it. Only if `is_cut`.
        """
        if self._stage < MAX_STAGE:
            mapping = parameter._hp_mapping
            if mapping is None:  # all of it is in slices of other ranks
                return 0, 0
            return mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
        size, whole = parameter.ds_tensor.ds_numel, parameter.ds_numel
        start = min(parameter.ds_zero_partition_rank * size, whole)
        return start, min(size, whole - start)  # the last slices are padded

    def read_slice(self, parameter: Any, name: str) -> Tensor:
        """Return this rank's slice (n,) of a tensor of `parameter`. Only if `is_cut`.

        A frozen parameter has only a weight. The slice may share memory with the tensor itself.
        """
        start, length = self.extent(parameter)
        key = None if name == WEIGHT else name
        if self._stage < MAX_STAGE:
            self._link_slices()
            if not length:
                return torch.empty(0)
            return parameter._hp_mapping.get_hp_fragment(key).detach().float()  # type: ignore[no-any-return]
        if parameter.requires_grad:
            value, _ = self._wrapper._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=True, optim_state_key=key
            )
            return value.detach()[:length].float()  # type: ignore[no-any-return]
        if parameter.ds_tensor.status is PartitionedParamStatus.AVAILABLE:
            return _wide(parameter.ds_tensor)[:length]
        return self._frozen(parameter).flatten()[start : start + length]  # swapped out

    def _frozen(self, parameter: nn.Parameter) -> Tensor:
        """Return a frozen weight, which has no fp32 copy but is partitioned under stage 3."""
        if self._stage < MAX_STAGE:
            return _wide(parameter)
        with GatheredParameters([parameter]):
            return _wide(parameter).clone()

    def write(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Write this rank's share of the whole tensor. Not a collective.

        Weights are written to the fp32 copies only: the model is loaded before the engine is built,
        so its rounded copies already agree.
        """
        if not self._sliced:
            master = self._master(parameter)
            if name == WEIGHT:
                master.data.copy_(value)
            else:
                dtype = torch.float32 if value.is_floating_point() else value.dtype
                self._torch_optimizer.state[master][name] = value.to(master.device, dtype).clone()
        elif self._stage == MAX_STAGE:
            self._write_stage3(parameter, name, value)
        else:
            self._link_slices()
            key = None if name == WEIGHT else name
            parameter.set_full_hp_param(value.to(parameter.device), key)  # type: ignore[attr-defined]

    def steps(self) -> float:
        """Return the optimizer's own count of applied updates (for Adam's bias correction)."""
        for state in self._torch_optimizer.state.values():
            if "step" in state:
                return float(state["step"])
        return 0.0

    def set_steps(self, steps: float) -> None:
        """Set the optimizer's count of applied updates for all parameters."""
        for master in self.optimized():
            state = self._torch_optimizer.state[master]
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(steps)
            elif "step" in state:
                state["step"] = int(steps)

    def _link_slices(self) -> None:
        """Link parameters to their optimizer state, which ZeRO 1 and 2 do only on demand.

        DeepSpeed links them once, after the step of its first parameter group, when the others have
        no state yet. The links are renewed here, only once, because that visits all parameters.
        """
        if self._linked:
            return
        self._linked = True
        if self._stage in (1, 2):  # in bf16, too, where links made before a step hold no state
            self._wrapper._hp_optimizer_states_linked = False
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def make_state(self) -> None:
        """Create the zero state that the optimizer's first step would create, for writing."""
        self._linked = False
        for master in self.optimized():
            state = self._torch_optimizer.state[master]
            if state:
                continue
            if isinstance(self._torch_optimizer, torch.optim.Adam | torch.optim.Adafactor):
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for name in self.state_names() if self._sliced else ():
                state[name] = torch.zeros_like(master, dtype=torch.float32)

    def optimized(self) -> list[Tensor]:
        """Return what the torch optimizer updates: parameters, fp32 copies, or flat slices."""
        if not self._sliced:
            return [self._master(parameter) for _, parameter in self.parameters()]
        if isinstance(self._wrapper, BF16_Optimizer):
            return list(self._wrapper.fp32_groups_flat_partition)
        if self._stage == MAX_STAGE:  # between steps its parameter groups are empty
            return list(self._wrapper.fp32_partitioned_groups_flat)
        return list(self._wrapper.single_partition_of_fp32_groups)

    def _write_stage3(self, parameter: Any, name: str, value: Tensor) -> None:
        """Write a slice under stage 3; DeepSpeed's setter fails if the last slice is short."""
        key = None if name == WEIGHT else name
        slot, _ = self._wrapper._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        start = slot.numel() * parameter.ds_zero_partition_rank
        rank_slice = value.reshape(-1)[start : start + slot.numel()]
        slot.data[: rank_slice.numel()].copy_(rank_slice)


def _unfused_masters(wrapper: Any) -> dict[int, Tensor]:
    """Map ids of half-precision parameters to DeepSpeed's fp32 copies of them under stage 0."""
    if not isinstance(wrapper, FP16_UnfusedOptimizer):
        return {}
    pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    return {id(p): master for half, full in pairs for p, master in zip(half, full, strict=True)}


def _wide(parameter: Tensor) -> Tensor:
    """Convert to fp32; integers stay unchanged."""
    value = parameter.detach()
    return value.float() if value.is_floating_point() else value


def _shaped(value: Tensor | None, parameter: Any) -> Tensor | None:
    return None if value is None else value.detach().reshape(full_shape(parameter))


def full_shape(parameter: Any) -> torch.Size:
    """Return the shape of the whole parameter, even if ZeRO stage 3 has partitioned it."""
    shape: torch.Size = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
    return shape
