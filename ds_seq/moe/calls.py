"""The sparse layers of a model in the order in which it calls them, whoever made it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from ds_seq.moe.layer import MoeFeedForward


@runtime_checkable
class OffersMoeCalls(Protocol):
    """A model or a part of one that knows in which order and how often it calls sparse layers."""

    def moe_calls(self) -> list[MoeFeedForward]:
        """One entry for each of its `moe_stats`; a layer called twice stands here twice."""


def moe_calls(model: nn.Module) -> list[MoeFeedForward]:
    """The sparse layer behind each of the statistics that a model returns.

    A model that does not say so itself is taken to call each of them once, in the order in which
    they are registered.
    """
    if isinstance(model, OffersMoeCalls):
        return model.moe_calls()
    return [module for module in model.modules() if isinstance(module, MoeFeedForward)]
