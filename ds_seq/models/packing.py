"""Prepare a model with constant weights for fast inference."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Packable(Protocol):
    """A module that can pack its weights into the layout that kernels read fastest."""

    def pack(self, int8: bool = False) -> None:
        """Pack the weights, see `ds_seq.modules.packed`."""


def pack_weights(model: nn.Module, int8: bool = False) -> None:
    """Give every linear map of a model a packed copy of its weights.

    If kernels support it (see `ds_seq.modules.packed`), the copies take as much memory as the
    weights, or half of it in 8 bits; otherwise this does nothing. Afterwards, the weights must
    not change, and the model cannot be copied or moved.

    Args:
        model: model in evaluation mode, on its final device and in its final precision.
        int8: whether to round all linear maps except routers to 8 bits.

    Raises:
        ValueError: `int8`, but no kernel supports the weights or the processor.
    """
    for module in model.modules():
        if isinstance(module, Packable):
            module.pack(int8)
