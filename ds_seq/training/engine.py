"""A small interface to the DeepSpeed engine: forward, backward, step, and the module.

DeepSpeed owns mixed precision, loss scaling, clipping, ZeRO, accumulation and the optimizer's step.
All corrections of its behavior are applied here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import deepspeed
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.deepspeed import zero_stage
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from ds_seq.moe.engine import split_expert_groups, unmark_frozen_experts
from ds_seq.names import Capture
from ds_seq.optim.param_groups import LR_FACTOR
from ds_seq.training.accumulation import Accumulation
from ds_seq.training.clipping import PlainClipping, correct_norm, sparse_clip_weights
from ds_seq.training.finite import gradients_not_finite
from ds_seq.training.loss_scale import LossScale

if TYPE_CHECKING:
    from ds_seq.training.ema import Ema


class StepResult(NamedTuple):
    """Result of one update."""

    applied: bool
    """False if gradients were not finite and all ranks skipped the update."""
    grad_norm: float
    """Global L2 norm before clipping, counting each expert once; infinite if not applied."""
    loss_scale: float
    """1.0 without fp16."""
    failed: bool = False
    """Whether it was not applied although no lower loss scale could have helped."""
    gradients: tuple[str, ...] = ()
    """Names of parameters whose gradients are not finite, if they were looked for."""


class UpdateSchedule:
    """Sets the learning rate of update n + 1 after n applied updates; DeepSpeed calls `step`.

    Args:
        optimizer: the torch optimizer.
        schedule: update number (1, 2, ...) -> learning rate; that of a group is times its
            `LR_FACTOR`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float]) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self.updates, self._factor = 0, 1.0
        self.set_updates(0)

    def step(self) -> None:
        """Advance by one applied update."""
        self.set_updates(self.updates + 1)

    def set_updates(self, updates: int) -> None:
        """Set the state after `updates` applied updates."""
        self.updates = updates
        self.lr = self._schedule(updates + 1) * self._factor
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * group.get(LR_FACTOR, 1.0)

    def set_factor(self, factor: float) -> None:
        """Multiply the schedule by a factor from the next update on."""
        self._factor = factor
        self.set_updates(self.updates)

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of the next update, per group."""
        return [group["lr"] for group in self._optimizer.param_groups]


class Engine:
    """A model under `deepspeed.initialize`.

    Args:
        model: a model with loaded weights, prepared by `ds_seq.moe.engine.connect_expert_parallel`.
        make_optimizer: parameter groups -> torch optimizer.
        groups: parameter groups of the model; the engine separates the experts.
        schedule: update number -> learning rate.
        config: the dict of `ds_seq.config.deepspeed.engine_config`.
        expert_parallel: number of ranks that share the experts.
        sparse_clip: weight expert gradients in the norm by 1 / sqrt(number of experts).
        capture: which layer outputs the model returns.

    Attributes:
        ema: averages the weights after each applied update; None: nothing does.
    """

    ema: Ema | None = None

    def __init__(  # noqa: PLR0913  (a builder: what the model is trained with, and how)
        self,
        model: nn.Module,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        groups: list[dict[str, Any]],
        schedule: Callable[[int], float],
        config: dict[str, Any],
        *,
        expert_parallel: int,
        sparse_clip: bool,
        capture: Capture = "none",
    ) -> None:
        if zero_stage(config) < 3:
            unmark_frozen_experts(model)
        optimizer = make_optimizer(split_expert_groups(groups) if expert_parallel > 1 else groups)
        self.schedule = UpdateSchedule(optimizer, schedule)
        distributed.import_zero()
        with _idle(optimizer), one_line_each():
            self.deepspeed, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, lr_scheduler=self.schedule, config=config
            )
        self.accumulate = int(config["gradient_accumulation_steps"])
        self.expert_parallel = expert_parallel
        self._capture = capture
        self.accumulation = Accumulation(self.deepspeed)
        self._scale = LossScale(self.deepspeed) if self.deepspeed.fp16_enabled() else None
        weights = sparse_clip_weights(model) if sparse_clip else {}
        self._plain: PlainClipping | None = None
        if self.deepspeed.optimizer is self.deepspeed.basic_optimizer:  # no wrapper: stage 0, fp32
            self._plain = PlainClipping(self.deepspeed, weights, expert_parallel)
        else:
            correct_norm(self.deepspeed.optimizer, weights)

    def __call__(self, batch: Batch) -> ModelOutput:
        """Run the model on a batch on `device`; logits (N, V) have a row per real target token."""
        output: ModelOutput = self.deepspeed(batch.inputs, self._capture)
        return output

    @property
    def device(self) -> torch.device:
        """Device on which batches must be."""
        return torch.device(self.deepspeed.device)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        module: nn.Module = self.deepspeed.module
        return module

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.deepspeed.zero_optimization_stage())

    @property
    def forward_is_collective(self) -> bool:
        """Whether all ranks must run the same number of forwards, sharing experts or weights."""
        return self.expert_parallel > 1 or self.zero_stage == 3

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`; DeepSpeed divides by ranks and accumulation steps."""
        self.deepspeed.backward(loss if self._scale is None else self._scale.scaled(loss))

    def step(self, name_gradients: bool = False) -> StepResult | None:
        """Step after each backward; the last micro-batch of an accumulation applies the update.

        Args:
            name_gradients: whether to look for gradients that are not finite before the update,
                after which they are gone; a collective that reads each of them.

        Returns:
            The result of the update; `None` before the last micro-batch.
        """
        last = self.deepspeed.is_gradient_accumulation_boundary()
        could_fall = self._scale is not None and self._scale.can_fall
        names = gradients_not_finite(self.module) if last and name_gradients else []
        if last and self._plain is not None:
            self._plain.measure()
        self.deepspeed.step()
        if not last:
            return None
        if self._scale is not None:
            self._scale.end_step()
        applied = bool(self.deepspeed.was_step_applied())
        norm = self._plain.norm if self._plain else self.deepspeed.get_global_grad_norm()
        if not applied:
            norm = math.inf
        elif self.ema is not None:
            self.ema.update()
        return StepResult(
            applied,
            float(norm) if norm is not None else 0.0,
            self.loss_scale,
            failed=not applied and not could_fall,
            gradients=tuple(names),
        )

    @property
    def has_fixed_scale(self) -> bool:
        """Whether the DeepSpeed JSON sets one fp16 loss scale for all updates."""
        return self._scale is not None and self._scale.is_fixed

    @property
    def loss_scale(self) -> float:
        """Current fp16 loss scale; 1.0 for other precisions."""
        return 1.0 if self._scale is None else self._scale.value

    def loss_scaler_state(self) -> dict[str, Any]:
        """Return the state from which a resumed run continues with the same loss scale."""
        return {} if self._scale is None else self._scale.state()

    def load_loss_scaler_state(self, state: dict[str, Any]) -> None:
        """Inverse of `loss_scaler_state`; ignored without fp16."""
        if self._scale is not None:
            self._scale.load_state(state)


@contextmanager
def _idle(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let steps of `optimizer` do nothing inside the block.

    In half precision without ZeRO, DeepSpeed makes a step while it is initialized. Adam would count
    it, so that its first real update would be 0.74 of what it should be, and weights would decay.
    """
    vars(optimizer)["step"] = lambda *args, **options: None
    try:
        yield
    finally:
        del vars(optimizer)["step"]


@contextmanager
def one_line_each() -> Iterator[None]:
    """Report values of the DeepSpeed JSON that only DeepSpeed itself knows to be wrong."""
    try:
        yield
    except ValidationError as error:
        lines = [
            f"the DeepSpeed JSON: {'.'.join(map(str, found['loc'])) or error.title}: "
            f"{' '.join(found['msg'].split())}"
            for found in error.errors()
        ]
        with distributed.shared_errors():  # all ranks see it; one reports it
            raise UserError("\n".join(lines)) from None
