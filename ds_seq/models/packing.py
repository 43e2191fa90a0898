"""A model whose weights no longer change, made ready to be called very often."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Packable(Protocol):
    """A module that can keep its weights in the form in which kernels read them fastest."""

    def pack(self, int8: bool = False) -> None:
        """See `ds_seq.modules.packed`."""


def pack_weights(model: nn.Module, int8: bool = False) -> None:
    """Let every linear map of a model keep a packed copy of its weights.

    Where there are kernels for it (see `ds_seq.modules.packed`) this takes the memory of the
    weights once more, or a quarter of it in 8 bits; elsewhere it does nothing. The weights must not
    change afterwards, and the model cannot be copied or moved.

    Args:
        model: in evaluation mode, on its device and in its precision.
        int8: round all linear maps but routers to 8 bits.

    Raises:
        ValueError: `int8`, and there are no kernels for it.
    """
    for module in model.modules():
        if isinstance(module, Packable):
            module.pack(int8)
