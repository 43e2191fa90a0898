"""Find the first module of a forward pass whose output is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class OutputProbe:
    """Outputs that were not finite, in the order in which modules returned them.

    The flags stay on the device until `first` is read.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._flags: list[Tensor] = []

    def look(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note whether an output has infinity or NaN; a forward hook once `name` is given."""
        with torch.no_grad():
            for value in tree_leaves(output):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    self._names.append(name)
                    self._flags.append(value.isfinite().all())

    @property
    def first(self) -> str:
        """Name of the first module with such an output; empty if all outputs were finite."""
        finite = torch.stack(self._flags).tolist() if self._flags else []
        return next((n for n, good in zip(self._names, finite, strict=True) if not good), "")


@contextmanager
def probed(model: nn.Module) -> Iterator[OutputProbe]:
    """Look at the output of every module of `model` that has parameters, inside the block.

    A module without parameters may return infinity on purpose, as a mask of attention does. A
    module returns after the modules inside it, so the first name is the innermost one.
    """
    probe = OutputProbe()
    handles = [
        module.register_forward_hook(partial(probe.look, name))
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is not None
    ]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()
