"""Sums of losses and routing statistics, kept on the device and reduced only on request.

Shapes: `E` experts.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.data.batch import Batch
from ds_seq.moe.output import RoutingStats
from ds_seq.moe.stats import packed, report
from ds_seq.names import LAYER_NAMES, LOSS
from ds_seq.reports.heat_map import Panel

Figures = dict[str, "float | list[float]"]
_EXPERTS_A_LINE = 16


class LossSums:
    """Accumulates the loss parts of many batches, without synchronization until `reduce`.

    Every rank adds the same parts and layers, even for empty batches, so that a single vector can
    be reduced over all ranks.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}
        self._layers: list[Tensor] = []
        self._losses: list[list[str]] = []  # names of each layer's losses
        self._counts = [0, 0]  # target tokens, sentences

    def add(self, parts: Mapping[str, Tensor], stats: list[RoutingStats], batch: Batch) -> None:
        """Add one batch; `parts` are sums over its target tokens."""
        for name, value in parts.items():
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        layers = [packed(layer) for layer in stats]
        losses = [sorted(layer.losses) for layer in stats]
        if self._layers:
            assert losses == self._losses, "a layer has the same losses in every forward"
            layers = [a + b for a, b in zip(self._layers, layers, strict=True)]
        self._layers, self._losses = layers, losses
        self._counts[0] += batch.num_tokens
        self._counts[1] += batch.num_sentences

    def reduce(self) -> Figures:
        """Return means per target token over all ranks, and routing figures. A collective.

        Returns:
            The parts by name, `ppl` from `nll`, `tokens`, `sentences`, and for MoE layer i (from 0,
            encoder first) `moe/layer<i>/{load,dropped,entropy,load_cv}` and its losses.
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
        for index, (layer, losses) in enumerate(zip(self._layers, self._losses, strict=True)):
            for key, figure in report(total[start : start + layer.numel()], losses).items():
                figures[f"moe/layer{index}/{key}"] = figure
            start += layer.numel()
        return figures


class FileLosses:
    """Accumulates the loss of each of several files, and the load of experts by its examples.

    Like `LossSums`, without synchronization.

    Args:
        files: names of the files, and their numbers of examples, in the order of the examples.
    """

    def __init__(self, files: Mapping[str, int]) -> None:
        self._names = list(files)
        self._ends = list(accumulate(files.values()))
        self._sums: list[float | Tensor] = [0.0] * len(files)
        self._tokens = [0] * len(files)
        self._loads: list[list[Tensor]] = []  # (E,) by file and layer

    def add(self, loss: Tensor, stats: Sequence[RoutingStats], batch: Batch) -> None:
        """Add one batch, of examples of one file: its number is that of its first example.

        Args:
            loss: () sum over the target tokens.
            stats: of each layer with experts.
            batch: the batch, on the CPU.
        """
        if not self._names:
            return
        if not self._loads:  # also by an empty batch, so that all ranks have the same layers
            none = [torch.zeros_like(layer.load) for layer in stats]
            self._loads = [none for _ in self._names]
        if batch.num_sentences:
            file = bisect(self._ends, int(batch.indices[0]))
            layers = zip(self._loads[file], stats, strict=True)
            self._loads[file] = [before + layer.load for before, layer in layers]
            self._sums[file] = self._sums[file] + loss
            self._tokens[file] += batch.num_tokens

    def reduce(self) -> Figures:
        """Return figures of each file over all ranks. A collective.

        Returns:
            `loss/<file>`, the mean per target token, and `moe/layer<i>/load/<file>`, the share of
            the assignments of each expert. Files without examples are left out.
        """
        if not self._names:
            return {}
        count, loads = len(self._names), list(chain.from_iterable(self._loads))
        local = torch.tensor([*map(float, self._sums), *self._tokens], dtype=torch.float64)
        packed_loads = [load.double().cpu() for load in loads]
        total = distributed.sum_over_ranks(torch.cat([local, *packed_loads]))
        sums, tokens = total[:count].tolist(), total[count : 2 * count].tolist()
        shares = iter(total[2 * count :].split([load.numel() for load in loads]))
        figures: Figures = {}
        for name, loss, number, layers in zip(
            self._names, sums, tokens, self._loads or [[]] * count, strict=True
        ):
            own = [next(shares) for _ in layers]
            if number:
                figures[f"{LOSS}/{name}"] = loss / number
                for index, load in enumerate(own):
                    share = load / load.sum().clamp(min=1.0)
                    figures[f"moe/layer{index}/load/{name}"] = share.tolist()
        return figures


def metric_names(figures: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics, the figures that have a signature."""
    return [name for name in figures if f"{name}_signature" in figures]


def metric_lines_by_file(figures: Mapping[str, Any]) -> list[str]:
    """Format loss and metrics of each file of a validation, one line per file."""
    files: dict[str, list[str]] = {}
    for name in [LOSS, *metric_names(figures)]:
        for key, value in figures.items():
            metric, _, file = key.partition("/")
            if metric == name and file:
                files.setdefault(file, []).append(f"{name} {value:.2f}")
    return [f"valid {file} | {' | '.join(parts)}" for file, parts in files.items()]


def metric_lines(figures: Mapping[str, Any]) -> list[str]:
    """Format the metrics of a validation with their signatures, one per line."""
    return [
        f"valid {name} {figures[name]:.2f} ({figures[f'{name}_signature'] or 'no signature'})"
        for name in metric_names(figures)
    ]


def layer_figures(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the routing figures, one mapping per MoE layer; empty for a dense model.

    Args:
        figures: result of `LossSums.reduce`; figures other than routing are ignored.
    """
    layers: dict[int, dict[str, Any]] = {}
    for name, value in figures.items():
        if match := re.fullmatch(r"moe/layer(\d+)/(\w+)", name):
            layers.setdefault(int(match[1]), {})[match[2]] = value
    return [layers[index] for index in range(len(layers))]


def load_panel(title: str, figures: Mapping[str, Any], names: Sequence[str] = ()) -> Panel | None:
    """Return the heat map data of `figures`; `None` for a dense model.

    Args:
        title: title of the map.
        figures: result of `LossSums.reduce`.
        names: names of the layers, by default those of the record; layers are numbered if there are
            none.
    """
    loads = [layer["load"] for layer in layer_figures(figures)]
    if not loads:
        return None
    shares = [[share * len(load) for share in load] for load in loads]
    return Panel(title, _named(names, figures, len(loads)), shares)


def load_table(figures: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Format each expert's share of the tokens as a table of at most 100 columns.

    Args:
        figures: result of `LossSums.reduce`.
        names: names of the layers, by default those of the record; layers are numbered if there are
            none.

    Returns:
        The table, with several lines per layer if it has many experts; empty for a dense model.
    """
    layers = layer_figures(figures)
    if not layers:
        return ""
    labels = _named(names, figures, len(layers))
    margin = max(map(len, ("layer", *labels)))
    most = max(len(layer["load"]) for layer in layers)
    heads = "".join(f"{expert:>5}" for expert in range(min(most, _EXPERTS_A_LINE)))
    lines = ["share of tokens per expert, in percent", f"{'layer':<{margin}}  dropped{heads}"]
    for label, layer in zip(labels, layers, strict=True):
        before = f"{label:<{margin}}{_percent(layer['dropped']):>9}"
        for first in range(0, len(layer["load"]), _EXPERTS_A_LINE):
            load = layer["load"][first : first + _EXPERTS_A_LINE]
            before = before if first == 0 else f"{f'from {first}':>{margin + 9}}"
            lines.append(before + "".join(f"{_percent(share):>5}" for share in load))
    return "\n".join(lines)


def router_table(figures: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Format the routing figures that `load_table` leaves out; empty for a dense model."""
    layers = layer_figures(figures)
    if not layers:
        return ""
    labels = _named(names, figures, len(layers))
    margin = max(map(len, ("layer", *labels)))
    keys = [
        key for key in dict.fromkeys(chain.from_iterable(layers)) if key not in ("load", "dropped")
    ]
    heads = ["experts", *keys]
    lines = [f"{'layer':<{margin}}" + "".join(f"  {head:>7}" for head in heads)]
    for label, layer in zip(labels, layers, strict=True):
        cells = [str(len(layer["load"]))]
        cells += [f"{layer[key]:.4f}" if key in layer else "" for key in keys]
        row = (f"  {cell:>{max(7, len(head))}}" for cell, head in zip(cells, heads, strict=True))
        lines.append(f"{label:<{margin}}" + "".join(row))
    return "\n".join(lines)


def _named(names: Sequence[str], figures: Mapping[str, Any], count: int) -> list[str]:
    names = list(names) or figures.get(LAYER_NAMES, [])
    return list(names) if len(names) == count else [str(index) for index in range(count)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share < 0.9995 else "100"
