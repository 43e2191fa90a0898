"""Sums of losses and routing statistics: on the device while training, one reduction when asked
    for.

Legend: ``E`` experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.data.dataset import Batch
from ds_seq.moe.output import RoutingStats
from ds_seq.moe.stats import packed, report

Figures = dict[str, "float | list[float]"]


class LossSums:
    """Accumulates the parts of many batches, without a synchronisation until `reduce`.

    Every rank adds the same parts and layers, empty batches included, so that one vector serves
    all.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}
        self._layers: list[Tensor] = []
        self._counts = [0, 0]  # target tokens, sentences

    def add(self, parts: Mapping[str, Tensor], stats: list[RoutingStats], batch: Batch) -> None:
        """Take in one batch; ``parts`` are sums over its target tokens."""
        for name, value in parts.items():
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        layers = [packed(layer) for layer in stats]
        if self._layers:
            layers = [a + b for a, b in zip(self._layers, layers, strict=True)]
        self._layers = layers
        self._counts[0] += batch.num_tokens
        self._counts[1] += batch.num_sentences

    def reduce(self) -> Figures:
        """Means per target token over all ranks, and routing figures per MoE layer. A collective.

        Returns:
            The parts by name, ``ppl`` from ``nll``, ``tokens``, ``sentences``, and for MoE layer i
            (from 0, encoder first) ``moe/layer<i>/{load,dropped,entropy,load_cv}``.
        """
        names = sorted(self._parts)
        pieces = [torch.tensor(self._counts, dtype=torch.float64)]
        pieces += [self._parts[name].reshape(1).double().cpu() for name in names]
        pieces += [layer.double().cpu() for layer in self._layers]
        total = distributed.sum_over_ranks(torch.cat(pieces))
        tokens, sentences = total[:2].tolist()
        figures: Figures = {"tokens": tokens, "sentences": sentences}
        for name, value in zip(names, total[2 : 2 + len(names)].tolist(), strict=True):
            figures[name] = value / max(tokens, 1.0)
        if "nll" in figures:
            figures["ppl"] = math.exp(min(float(figures["nll"]), 700.0))  # type: ignore[arg-type]
        start = 2 + len(names)
        for index, layer in enumerate(self._layers):
            for key, figure in report(total[start : start + layer.numel()]).items():
                figures[f"moe/layer{index}/{key}"] = figure
            start += layer.numel()
        return figures


def load_table(figures: Mapping[str, float | list[float] | str]) -> str:
    """The share of tokens of each expert, a line per MoE layer, for people to read.

    Args:
        figures: as `LossSums.reduce` gives them.

    Returns:
        Several lines; empty for a dense model.
    """
    lines: list[str] = []
    layer = 0
    while f"moe/layer{layer}/load" in figures:
        load = figures[f"moe/layer{layer}/load"]
        assert isinstance(load, list)
        dropped = float(figures[f"moe/layer{layer}/dropped"])  # type: ignore[arg-type]
        if not lines:
            heads = "".join(f"{expert:>7}" for expert in range(len(load)))
            lines += [
                "share of tokens per expert, in percent",
                f"{'layer':<7}{heads}{'dropped':>9}",
            ]
        shares = "".join(f"{100 * share:7.1f}" for share in load)
        lines.append(f"{layer:<7}{shares}{100 * dropped:9.1f}")
        layer += 1
    return "\n".join(lines)
