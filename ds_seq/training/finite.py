"""Numbers that are not finite: in which parameters they are, and when they end a run.

DeepSpeed skips an update whose gradients are not finite. With a dynamic fp16 loss scale that is
part of the method: the next update has a smaller scale. Anywhere else the next update is computed
like the skipped one, so a run would go on without learning anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from ds_seq import distributed

_SHOWN = 5


class SkippedUpdates:
    """Counts skipped updates that the next one would repeat, and says when there are too many.

    Args:
        tolerated: how many a run survives.
        recent: among the last so many updates.
    """

    def __init__(self, tolerated: int, recent: int) -> None:
        self._tolerated = tolerated
        self._recent: deque[bool] = deque(maxlen=recent)

    def note(self, skipped: bool) -> None:
        """Note whether an update was skipped."""
        self._recent.append(skipped)

    def clear(self) -> None:
        """Forget all updates."""
        self._recent.clear()

    @property
    def too_many(self) -> bool:
        """Whether the run should end."""
        return sum(self._recent) > self._tolerated

    def __str__(self) -> str:
        return f"{sum(self._recent)} of the last {len(self._recent)} updates"

    def state(self) -> list[int]:
        """Return how many updates ago each skipped one was, and how many are counted in all."""
        ages = [len(self._recent) - place for place, skipped in enumerate(self._recent) if skipped]
        return [len(self._recent), *ages]

    def load_state(self, state: list[int]) -> None:
        """Inverse of `state`."""
        self._recent.clear()
        size, *ages = state
        self._recent.extend(size - place in ages for place in range(size))


def weights_not_finite(module: nn.Module) -> list[str]:
    """Return names of parameters that hold infinity or NaN on any rank. A collective.

    Args:
        module: the model; under ZeRO stage 3, each rank looks at its slices.
    """
    # a parameter that stage 3 has partitioned is empty; its slice is an attribute of it
    named: Any = module.named_parameters()
    return _named(
        (name, p.ds_tensor if hasattr(p, "ds_tensor") else p.detach()) for name, p in named
    )


def gradients_not_finite(module: nn.Module) -> list[str]:
    """Return names of parameters whose gradients hold infinity or NaN on any rank. A collective.

    Args:
        module: the model in a DeepSpeed engine, between the last backward of an update and its
            step. Gradients are gathered one after another.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    gradients = ((name, safe_get_full_grad(parameter)) for name, parameter in trained)
    return _named((name, gradient) for name, gradient in gradients if gradient is not None)


def _named(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    found = [(name, tensor.isfinite().all()) for name, tensor in tensors]
    # one wait for the device, not one per parameter
    is_finite = torch.stack([flag for _, flag in found]).tolist() if found else []
    names = [name for (name, _), finite in zip(found, is_finite, strict=True) if not finite]
    if not distributed.any_rank(bool(names)):
        return []
    of_ranks = distributed.broadcast_object(distributed.gather_objects(names))
    return list(dict.fromkeys(name for of_rank in of_ranks for name in of_rank))


def describe(weights: list[str], gradients: list[str]) -> str:
    """Describe where numbers are not finite: in weights if there are any, which are the cause."""
    if weights:
        return f"infinity or NaN in the weights {_listed(weights)}"
    if gradients:
        return f"infinity or NaN in the gradients of {_listed(gradients)}"
    return "infinity or NaN in the gradients"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
