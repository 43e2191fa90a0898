"""The fp16 loss scale, with corrections of three errors of DeepSpeed 0.19.

- Without ZeRO the engine divides gradients by the scale but never multiplies the loss by it: every
  gradient is too small by that factor, and nothing is protected from underflow.
- The scale grows in the middle of a step, before gradients are divided by it: the gradient of that
  update is halved. Here the scale grows only after the step.
- Without ZeRO, reaching the minimum scale is not an error: every update is skipped forever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        self._update_scale = self._wrapper._update_scale
        self._wrapper._update_scale = self._hold_growth

    @property
    def value(self) -> float:
        """Scale of the next backward pass."""
        return float(self._wrapper.loss_scale)

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

    def _scaler_state(self) -> dict[str, Any]:
        scaler = self._wrapper.loss_scale_config if self._forgotten else self._wrapper.loss_scaler
        values: dict[str, Any] = vars(scaler)
        return values

    def _hold_growth(self, has_overflow: bool = False) -> None:
        if has_overflow:  # the step is skipped and its gradients are discarded
            self._check_can_fall()
            self._update_scale(True)
        else:
            self._grows = True

    def _check_can_fall(self) -> None:
        """Raise without ZeRO where ZeRO's own scaler raises."""
        values = self._scaler_state()
        is_dynamic = self._forgotten and values["dynamic_loss_scale"]
        if is_dynamic and values["cur_scale"] <= values["min_loss_scale"]:
            raise RuntimeError("the loss scale is at its minimum")
