"""Full fp32 weights and optimizer state of every parameter, whatever DeepSpeed made of them.

ZeRO cuts them into flat slices, the fp16 wrapper keeps copies of its own, stage 0 leaves them
whole. `FullState` gives one view of all of these, by parameter and by name of the state, so that a
checkpoint need not know the layout that wrote it. Reading is a collective: all ranks ask for the
same things in the same order, experts over the ranks that hold the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

WEIGHT = "weight"
"""The name under which the fp32 weight itself goes, beside the optimizer's own state names."""


class FullState:
    """The fp32 weights and the optimizer state behind an engine, between two of its updates.

    Args:
        engine: a ``DeepSpeedEngine`` that owns a torch optimizer.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._stage = int(engine.zero_optimization_stage())
        self._wrapper = engine.optimizer
        self._torch_optimizer: torch.optim.Optimizer = engine.basic_optimizer
        self._masters = _unfused_masters(self._wrapper)
        self._linked = False

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters with their names, in the order of the model."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def state_names(self) -> tuple[str, ...]:
        """Names of the optimizer's per-parameter tensors; one answer for all parameters."""
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
        """The fp32 tensor that stage 0 optimizes in place of ``parameter``; often itself."""
        return self._masters.get(id(parameter), parameter)

    @property
    def _sliced(self) -> bool:
        return self._stage > 0

    def read(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """The whole tensor of ``parameter``; ``None`` if there is none yet. A collective.

        A parameter that is not trained has a weight, and nothing else.
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

    def _frozen(self, parameter: nn.Parameter) -> Tensor:
        """A weight of which the optimizer knows nothing: no fp32 copy, but sliced under stage 3."""
        if self._stage < 3:
            return _wide(parameter)
        with GatheredParameters([parameter]):
            return _wide(parameter).clone()

    def write(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Put this rank's share of the whole tensor in place. No collective.

        Weights are written to the fp32 copies only: the model itself is loaded before the engine is
        made, so its rounded copies agree already.
        """
        if not self._sliced:
            master = self._master(parameter)
            if name == WEIGHT:
                master.data.copy_(value)
            else:
                dtype = torch.float32 if value.is_floating_point() else value.dtype
                self._torch_optimizer.state[master][name] = value.to(master.device, dtype).clone()
        elif self._stage == 3:
            self._write_stage3(parameter, name, value)
        else:
            self._link_slices()
            key = None if name == WEIGHT else name
            parameter.set_full_hp_param(value.to(parameter.device), key)  # type: ignore[attr-defined]

    def steps(self) -> float:
        """The optimizer's own count of applied updates (Adam's bias correction)."""
        for state in self._torch_optimizer.state.values():
            if "step" in state:
                return float(state["step"])
        return 0.0

    def set_steps(self, steps: float) -> None:
        """Set that count everywhere."""
        for master in self._optimized():
            state = self._torch_optimizer.state[master]
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(steps)
            elif "step" in state:
                state["step"] = int(steps)

    def _link_slices(self) -> None:
        """ZeRO 1 and 2 tell parameters where their optimizer state lies only on demand.

        DeepSpeed does it once, after the step of its first parameter group, when the others have no
        state yet; so the links are made anew here, once, for it takes a walk over all parameters.
        """
        if self._linked:
            return
        self._linked = True
        if isinstance(self._wrapper, BF16_Optimizer):
            self._wrapper._lazy_init_hp_params_optimizer_state()
        elif self._stage in (1, 2):
            self._wrapper._hp_optimizer_states_linked = False
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def make_state(self) -> None:
        """Give the optimizer its (zero) state where its first step would make it; for writing."""
        self._linked = False
        for master in self._optimized():
            state = self._torch_optimizer.state[master]
            if state:
                continue
            if isinstance(self._torch_optimizer, torch.optim.Adam | torch.optim.Adafactor):
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for name in self.state_names() if self._sliced else ():
                state[name] = torch.zeros_like(master, dtype=torch.float32)

    def _optimized(self) -> list[Tensor]:
        """What the torch optimizer really updates: parameters, fp32 copies, or flat slices."""
        if not self._sliced:
            return [self._master(parameter) for _, parameter in self.parameters()]
        if isinstance(self._wrapper, BF16_Optimizer):
            return list(self._wrapper.fp32_groups_flat_partition)
        if self._stage == 3:  # between steps its parameter groups are empty
            return list(self._wrapper.fp32_partitioned_groups_flat)
        return list(self._wrapper.single_partition_of_fp32_groups)

    def _write_stage3(self, parameter: Any, name: str, value: Tensor) -> None:
        """DeepSpeed's own setter cuts unpadded values, which fails when the last slice is short."""
        key = None if name == WEIGHT else name
        slot, _ = self._wrapper._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        start = slot.numel() * parameter.ds_zero_partition_rank
        mine = value.reshape(-1)[start : start + slot.numel()]
        slot.data[: mine.numel()].copy_(mine)


def _unfused_masters(wrapper: Any) -> dict[int, Tensor]:
    """fp32 copies that DeepSpeed keeps of half-precision parameters under stage 0, by parameter."""
    if not isinstance(wrapper, FP16_UnfusedOptimizer):
        return {}
    pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    return {id(p): master for half, full in pairs for p, master in zip(half, full, strict=True)}


def _wide(parameter: nn.Parameter) -> Tensor:
    """In fp32, but whole numbers as they are."""
    value = parameter.detach()
    return value.float() if value.is_floating_point() else value


def _shaped(value: Tensor | None, parameter: Any) -> Tensor | None:
    return None if value is None else value.detach().reshape(full_shape(parameter))


def full_shape(parameter: Any) -> torch.Size:
    """Shape of the whole parameter, also where ZeRO stage 3 has taken it away."""
    shape: torch.Size = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
    return shape
