"""Watches the load of experts while a model trains, and says when a layer collapses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ds_seq.moe.calls import moe_calls
from ds_seq.names import STACKS
from ds_seq.reports.heat_map import STARVED
from ds_seq.reports.metrics import layer_figures

PATIENCE = 500
"""Updates during which an expert may be starved before it is told."""

_PLACE = re.compile(rf"({'|'.join(STACKS)})\.layers\.(\d+)\.")
_MOST_NAMED = 8
_ADVICE = (
    "raise criterion.loss_weights.load_balance (criterion model_and_base has it), or try "
    "model.moe.noise=jitter, model.moe.router=sigmoid or fewer experts"
)


def layer_names(model: nn.Module) -> list[str]:
    """What to call the Mixture-of-Experts layers of ``model``, in the order of their statistics.

    Returns:
        Such as ``encoder 1`` (from 0, as in the experiment file), or the path of a module that lies
        elsewhere; ``encoder 1 (call 2)`` for the second call of a layer; empty for a dense model.
    """
    paths = {module: path for path, module in model.named_modules()}  # a module's first path
    calls: Counter[str] = Counter()
    names = []
    for layer in moe_calls(model):
        path = paths[layer]
        place = _PLACE.search(path + ".")
        name = f"{place[1]} {place[2]}" if place else path
        calls[path] += 1
        names.append(f"{name} (call {calls[path]})" if calls[path] > 1 else name)
    return names


class MoeWatch:
    """Counts for how long an expert has had next to no tokens.

    An expert is starved while it gets less than 1% of its fair share of a log interval's
    assignments: its part of the model learns nothing, and seldom comes back by itself.

    Args:
        names: of the layers, see `layer_names`; others are called by their number.
        patience: updates after which a starved expert is told.
    """

    def __init__(self, names: Sequence[str] = (), patience: int = PATIENCE) -> None:
        self._names, self._patience = list(names), patience
        self._starved: list[list[int]] = []  # updates, by layer and expert
        self._told: list[bool] = []  # by layer

    def observe(self, figures: Mapping[str, Any], updates: int) -> list[str]:
        """Take in a log interval.

        Args:
            figures: of the interval, as `LossSums.reduce` gives them.
            updates: how many it has.

        Returns:
            What to tell: a line for each layer that has just collapsed or recovered. A layer is
            told once, until all of its experts have tokens again.
        """
        lines = []
        for layer, figure in enumerate(layer_figures(figures)):
            load = figure["load"]
            assert isinstance(load, list)
            if layer == len(self._starved):
                self._starved.append([0] * len(load))
                self._told.append(False)
            self._starved[layer] = starved = [
                before + updates if share * len(load) < STARVED else 0
                for before, share in zip(self._starved[layer], load, strict=True)
            ]
            name = self._names[layer] if layer < len(self._names) else f"layer {layer}"
            experts = [index for index, count in enumerate(starved) if count >= self._patience]
            if experts and not self._told[layer]:
                lines.append(_warning(name, experts, max(starved)))
                self._told[layer] = True
            elif self._told[layer] and not any(starved):
                lines.append(f"{name}: all experts get tokens again")
                self._told[layer] = False
        return lines

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"starved": [list(layer) for layer in self._starved], "told": list(self._told)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo of `state_dict`."""
        self._starved = [list(layer) for layer in state["starved"]]
        self._told = list(state["told"])


def _warning(name: str, experts: Sequence[int], updates: int) -> str:
    shown = ", ".join(map(str, experts[:_MOST_NAMED]))
    more = f" and {len(experts) - _MOST_NAMED} more" if len(experts) > _MOST_NAMED else ""
    noun = "expert" if len(experts) == 1 else "experts"
    return (
        f"warning: {name} collapses: {noun} {shown}{more} got less than {STARVED:.0%} of the fair "
        f"share of tokens for {updates} updates; {_ADVICE}"
    )
