"""Loss-free load balancing: the biases of sigmoid routers follow the load of their experts.

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
    """Adjust the biases of a model's `SigmoidRouter` layers once per update (arXiv:2408.15664).

    The load is counted before dropping, over all micro-batches of the update on all ranks. It stays
    on the device; only its sum over ranks is synchronized. All ranks therefore hold equal biases,
    which do not depend on the layout of the ranks. A router with a frozen weight keeps its biases.
    If a layer is called several times in a forward pass, the loads of its calls are added. For a
    model without sigmoid routers, this class does nothing.

    Args:
        model: model whose `moe_stats` have one entry per call of an MoE layer, see
            `ds_seq.moe.calls`.
    """

    def __init__(self, model: nn.Module) -> None:
        calls = [layer.gate for layer in moe_calls(model)]
        self._num_calls = len(calls)
        self._routers = [  # each with the indices of its calls
            (gate, [index for index, called in enumerate(calls) if called is gate])
            for gate in dict.fromkeys(calls)
            if isinstance(gate, SigmoidRouter) and gate.weight.requires_grad
        ]
        self._loads: list[Tensor] | None = None  # (E,) float32 per router

    @torch.no_grad()
    def add(self, stats: list[RoutingStats]) -> None:
        """Add the load of one training micro-batch.

        Args:
            stats: statistics of each call of an MoE layer, as returned by the model.
        """
        if not self._routers:
            return
        assert len(stats) == self._num_calls, "one entry of statistics per call of each MoE layer"
        loads = [
            torch.stack([stats[call].load for call in calls]).sum(0) for _, calls in self._routers
        ]
        if self._loads is not None:
            loads = [old + new for old, new in zip(self._loads, loads, strict=True)]
        self._loads = loads

    @torch.no_grad()
    def update(self) -> None:
        """Move every bias one step against the load since the last update, then clear the load.

        A collective operation if there are sigmoid routers: every rank must call it after each
        applied update.
        """
        if not self._routers or self._loads is None:
            return
        sizes = [load.numel() for load in self._loads]
        totals = sum_over_ranks(torch.cat(self._loads))
        for (router, _), load in zip(self._routers, torch.split(totals, sizes), strict=True):
            router.bias_steps += (load.mean() - load).sign().to(torch.int64)
        self._loads = None

    def discard(self) -> None:
        """Clear the load after an update that was not applied."""
        self._loads = None
