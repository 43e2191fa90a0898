"""The fp16 loss scale, with three things of DeepSpeed 0.19 put right.

- Without ZeRO the engine divides gradients by the scale but never multiplies the loss by it: every
  gradient comes out smaller by the scale, and nothing is protected from underflow.
- The scale grows in the middle of a step, before gradients are divided by it: the gradient of that
  update comes out at half its size. Growth is held back here until the step is over.
- Without ZeRO a scale that can fall no further is no error: every update is skipped, for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScale:
    """What the loss is multiplied by, so that fp16 gradients do not underflow.

    Args:
        engine: a ``DeepSpeedEngine`` in fp16.
    """

    def __init__(self, engine: Any) -> None:
        self._wrapper = engine.optimizer
        self._forgotten = not engine.zero_optimization()
        self._grows = False
        self._update_scale = self._wrapper._update_scale
        self._wrapper._update_scale = self._hold_growth

    @property
    def value(self) -> float:
        """The scale of the coming backward pass."""
        return float(self._wrapper.loss_scale)

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss`` as the engine's backward wants it."""
        return loss * self.value if self._forgotten else loss

    def end_step(self) -> None:
        """After the engine's step: let the scale grow, if it is time."""
        if self._grows:
            self._grows = False
            self._update_scale(False)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same scale."""
        own = self._own_state()
        return {key: own[key] for key in _STATE if key in own}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        own = self._own_state()
        own.update({key: state[key] for key in _STATE if key in state and key in own})

    def _own_state(self) -> dict[str, Any]:
        scaler = self._wrapper.loss_scale_config if self._forgotten else self._wrapper.loss_scaler
        own: dict[str, Any] = vars(scaler)
        return own

    def _hold_growth(self, has_overflow: bool = False) -> None:
        if has_overflow:  # this step is void, its gradients are thrown away
            self._check_can_fall()
            self._update_scale(True)
        else:
            self._grows = True

    def _check_can_fall(self) -> None:
        """Where ZeRO's own scaler raises, so do we without ZeRO."""
        own = self._own_state()
        is_dynamic = self._forgotten and own["dynamic_loss_scale"]
        if is_dynamic and own["cur_scale"] <= own["min_loss_scale"]:
            raise RuntimeError("the loss scale is at its minimum")
