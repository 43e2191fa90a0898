"""Watch the load of experts during training and warn when a layer collapses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ds_seq.moe.calls import moe_calls
from ds_seq.names import LAYER_NAME
from ds_seq.reports.heat_map import STARVED
from ds_seq.reports.metrics import layer_figures

PATIENCE = 500
"""Updates for which an expert may be starved before it is reported."""

_MOST_NAMED = 8
_ADVICE = (
    "raise criterion.loss_weights.load_balance (criterion model_and_base has it), or try "
    "model.moe.noise=jitter, model.moe.router=sigmoid or fewer experts"
)


def layer_names(model: nn.Module) -> list[str]:
    """Name the Mixture-of-Experts layers of `model`, in the order of their statistics.

    Returns:
        Names such as `encoder 1` (from 0, as in the experiment file), or the path of a module
        outside the stacks; `encoder 1 (call 2)` for the second call of a layer. Empty for a dense
        model.
    """
    paths = {module: path for path, module in model.named_modules()}  # a module's first path
    calls: Counter[str] = Counter()
    names = []
    for layer in moe_calls(model):
        path = paths[layer]
        place = LAYER_NAME.search(path + ".")
        name = f"{place[1]} {place[2]}" if place else path
        calls[path] += 1
        names.append(f"{name} (call {calls[path]})" if calls[path] > 1 else name)
    return names


class MoeWatch:
    """Counts for how many updates experts have received almost no tokens.

    An expert is starved if it gets less than 1% of its fair share of the assignments in a log
    interval. A starved expert learns nothing and seldom recovers.

    Args:
        names: names of the layers, see `layer_names`; layers without a name are numbered.
        patience: number of updates after which a starved expert is reported.
    """

    def __init__(self, names: Sequence[str] = (), patience: int = PATIENCE) -> None:
        self._names, self._patience = list(names), patience
        self._starved: list[list[int]] = []  # updates, by layer and expert
        self._reported: list[bool] = []  # by layer

    def observe(self, figures: Mapping[str, Any], updates: int) -> list[str]:
        """Add the figures of a log interval.

        Args:
            figures: figures of the interval, the result of `LossSums.reduce`.
            updates: number of updates in the interval.

        Returns:
            Messages, a line for each layer that has just collapsed or recovered. A collapsed layer
            is reported once, until all of its experts receive tokens again.
        """
        lines = []
        for layer, figure in enumerate(layer_figures(figures)):
            load = figure["load"]
            assert isinstance(load, list)
            if layer == len(self._starved):
                self._starved.append([0] * len(load))
                self._reported.append(False)
            self._starved[layer] = starved = [
                before + updates if share * len(load) < STARVED else 0
                for before, share in zip(self._starved[layer], load, strict=True)
            ]
            name = self._names[layer] if layer < len(self._names) else f"layer {layer}"
            experts = [index for index, count in enumerate(starved) if count >= self._patience]
            if experts and not self._reported[layer]:
                lines.append(_warning(name, experts, max(starved)))
                self._reported[layer] = True
            elif self._reported[layer] and not any(starved):
                lines.append(f"{name}: all experts get tokens again")
                self._reported[layer] = False
        return lines

    def state_dict(self) -> dict[str, Any]:
        """Return the state, serializable as JSON."""
        return {"starved": [list(layer) for layer in self._starved], "told": list(self._reported)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._starved = [list(layer) for layer in state["starved"]]
        self._reported = list(state["told"])


def _warning(name: str, experts: Sequence[int], updates: int) -> str:
    shown = ", ".join(map(str, experts[:_MOST_NAMED]))
    more = f" and {len(experts) - _MOST_NAMED} more" if len(experts) > _MOST_NAMED else ""
    noun = "expert" if len(experts) == 1 else "experts"
    return (
        f"warning: {name} collapses: {noun} {shown}{more} got less than {STARVED:.0%} of the fair "
        f"share of tokens for {updates} updates; {_ADVICE}"
    )
