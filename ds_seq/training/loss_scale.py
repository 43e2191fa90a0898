"""The fp16 loss scale, with corrections of four errors of DeepSpeed 0.19.

- Without ZeRO the engine divides gradients by the scale but never multiplies the loss by it: every
  gradient is too small by that factor, and nothing is protected from underflow.
- Without ZeRO the scale follows rules of its own: it ignores `hysteresis` and
  `consecutive_hysteresis`, and at its minimum every update is skipped forever. Here it follows the
  scaler of ZeRO, so that all stages have one scale.
- The scale grows in the middle of a step, before gradients are divided by it: the gradient of that
  update is halved. Here the scale grows only after the step.
- An overflow at the minimum raises an exception in the middle of a step. Here the update is skipped
  like any other, and `train.on_divergence` decides what follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
from torch import Tensor

_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScale:
    """The factor on the loss that keeps fp16 gradients from underflowing.

    Args:
        engine: a `DeepSpeedEngine` in fp16.
    """

    def __init__(self, engine: Any) -> None:
        self._wrapper = engine.optimizer
        self._forgotten = not engine.zero_optimization()
        self._grows = False
        self._scaler = self._scaler_without_zero(engine) if self._forgotten else None
        self._scaler_state()["raise_error_at_min_scale"] = False
        self._update_scale = self._wrapper._update_scale
        self._wrapper._update_scale = self._hold_growth

    @property
    def value(self) -> float:
        """Scale of the next backward pass."""
        return float(self._wrapper.loss_scale)

    @property
    def can_fall(self) -> bool:
        """Whether an overflow would lower the scale: not if it is fixed or at its minimum."""
        values = self._scaler_state()
        return bool(values["dynamic"]) and values["cur_scale"] > values["min_scale"]

    @property
    def is_fixed(self) -> bool:
        """Whether the DeepSpeed JSON sets one scale for all updates (`fp16.loss_scale`)."""
        return not self._scaler_state()["dynamic"]

    def scaled(self, loss: Tensor) -> Tensor:
        """Return `loss` as the engine's backward expects it."""
        return loss * self.value if self._forgotten else loss

    def end_step(self) -> None:
        """Let the scale grow if it is due; called after the engine's step."""
        if self._grows:
            self._grows = False
            self._update_scale(False)

    def state(self) -> dict[str, Any]:
        """Return the state from which a resumed run continues with the same scale."""
        values = self._scaler_state()
        return {key: values[key] for key in _STATE if key in values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        values = self._scaler_state()
        values.update({key: state[key] for key in _STATE if key in state and key in values})
        self._pass_on()

    def _scaler_without_zero(self, engine: Any) -> Any:
        """Make the scaler that ZeRO would make, and let the wrapper follow it."""
        scaler = CreateLossScaler(
            torch.float16,
            static_loss_scale=engine.loss_scale(),
            dynamic_scaling=engine.dynamic_loss_scale(),
            dynamic_loss_args=engine.dynamic_loss_scale_args(),
        )

        def update_scale(skip: bool) -> None:
            scaler.update_scale(skip)
            self._pass_on()

        self._wrapper._update_scale = update_scale
        return scaler

    def _pass_on(self) -> None:
        if self._scaler is not None:
            self._wrapper.loss_scale_config.cur_scale = self._scaler.cur_scale

    def _scaler_state(self) -> dict[str, Any]:
        values: dict[str, Any] = vars(self._scaler or self._wrapper.loss_scaler)
        return values

    def _hold_growth(self, has_overflow: bool = False) -> None:
        if has_overflow:  # the step is skipped and its gradients are discarded
            self._update_scale(True)
        else:
            self._grows = True
