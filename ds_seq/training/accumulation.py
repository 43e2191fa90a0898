"""Updates of another number of batches than DeepSpeed expects, and failed backward passes.

DeepSpeed counts backward passes to know when an update is complete, and keeps gradients that wait
to be reduced. Both are corrected here where a batch was split, or where a backward pass has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


class Accumulation:
    """The backward passes of one update.

    Args:
        engine: a `DeepSpeedEngine`.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._usual = int(engine.gradient_accumulation_steps())
        self._is_reducing = False
        epilogue: Callable[[], None] = engine._backward_epilogue

        def backward_epilogue() -> None:
            self._is_reducing = True
            epilogue()
            self._is_reducing = False

        engine._backward_epilogue = backward_epilogue

    @contextmanager
    def of(self, count: int) -> Iterator[Callable[[int], None]]:
        """Let the update of the block consist of `count` batches.

        Yields:
            A function to be called with the number of each batch, from 0, before its forward.
        """
        if count == self._usual:
            yield lambda place: None
            return
        engine = self._engine
        try:
            yield lambda place: engine.set_gradient_accumulation_boundary(place + 1 == count)
        finally:
            engine._is_gradient_accumulation_boundary = None
            engine.micro_steps += self._usual - count

    def forget_backward(self) -> bool:
        """Make ready for another backward pass in place of one that has failed.

        Gradients of the failed one may remain, so the update must not be applied.

        Returns:
            False if the pass had begun to exchange gradients with other ranks, which then cannot
            be made up for.
        """
        if self._is_reducing:
            return False
        wrapper = self._engine.optimizer
        if hasattr(wrapper, "_backward_hook_state"):
            wrapper._backward_hook_state.backward_active_depth = 0
            wrapper._backward_hook_state.remaining_grad_acc_hooks = 0
        if isinstance(wrapper, DeepSpeedZeroOptimizer):
            if any(wrapper.params_already_reduced):
                return False
            for bucket in wrapper.ipg_buckets.values():
                bucket.clear()
            wrapper.extra_large_param_to_reduce.clear()
        return True
