"""Balance without a loss: the biases of sigmoid routers follow the load of their experts.

Shapes: E experts of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds_seq.distributed import sum_over_ranks
from ds_seq.moe.calls import moe_calls
from ds_seq.moe.output import RoutingStats
from ds_seq.moe.sigmoid import SigmoidRouter


class BiasBalancer:
    """Moves the biases of a model's `SigmoidRouter` layers, once per update (arXiv:2408.15664).

    The load is that of all micro-batches of the update on all ranks, before dropping. It stays on
    the device: nothing is synchronized but the sum over ranks. All ranks therefore hold equal
    biases, and the biases are the same for every layout of the ranks. A router whose weight is not
    trained keeps its biases. The load of a layer that is called several times in a forward is that
    of all its calls. Costs nothing for a model without such routers.

    Args:
        model: whose `moe_stats` have an entry for each call of a MoE layer, see
            `ds_seq.moe.calls`.
    """

    def __init__(self, model: nn.Module) -> None:
        calls = [layer.gate for layer in moe_calls(model)]
        self._num_calls = len(calls)
        self._routers = [  # each with the places of its calls
            (gate, [index for index, called in enumerate(calls) if called is gate])
            for gate in dict.fromkeys(calls)
            if isinstance(gate, SigmoidRouter) and gate.weight.requires_grad
        ]
        self._loads: list[Tensor] | None = None  # (E,) float32 of each router

    @torch.no_grad()
    def add(self, stats: list[RoutingStats]) -> None:
        """Count one micro-batch of training.

        Args:
            stats: of each call of a MoE layer, as the model returns them.
        """
        if not self._routers:
            return
        assert len(stats) == self._num_calls, "statistics of each MoE layer, once per call"
        loads = [
            torch.stack([stats[call].load for call in calls]).sum(0) for _, calls in self._routers
        ]
        if self._loads is not None:
            loads = [old + new for old, new in zip(self._loads, loads, strict=True)]
        self._loads = loads

    @torch.no_grad()
    def update(self) -> None:
        """Move every bias one step against the load since the last update, and forget the load.

        A collective if there are sigmoid routers: every rank calls it after each applied update.
        """
        if not self._routers or self._loads is None:
            return
        sizes = [load.numel() for load in self._loads]
        totals = sum_over_ranks(torch.cat(self._loads))
        for (router, _), load in zip(self._routers, torch.split(totals, sizes), strict=True):
            router.bias_steps += (load.mean() - load).sign().to(torch.int64)
        self._loads = None

    def discard(self) -> None:
        """Forget the load, after an update that was not applied."""
        self._loads = None
