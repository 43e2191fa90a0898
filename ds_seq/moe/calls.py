"""The sparse layers of any model, ours or external, in the order of their calls."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from ds_seq.moe.layer import MoeFeedForward


@runtime_checkable
class OffersMoeCalls(Protocol):
    """A model, or part of one, that reports in which order and how often it calls sparse layers."""

    def moe_calls(self) -> list[MoeFeedForward]:
        """Return one layer per entry of `moe_stats`; a layer called twice is listed twice."""


def moe_calls(model: nn.Module) -> list[MoeFeedForward]:
    """Return the sparse layer behind each entry of statistics that a model returns.

    A model without a method `moe_calls` is assumed to call each sparse layer once, in the order of
    registration.
    """
    if isinstance(model, OffersMoeCalls):
        return model.moe_calls()
    return [module for module in model.modules() if isinstance(module, MoeFeedForward)]
