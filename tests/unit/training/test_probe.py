"""The first module whose output is not finite is named."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ds_seq.training.probe import probed


class _Block(nn.Module):
    """Two projections, and a mask of minus infinity from a module without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Threshold(0.0, -math.inf)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, value: Tensor) -> dict[str, Tensor]:
        hidden = self.first(value)
        return {"mask": self.mask(-hidden).exp(), "out": self.second(hidden)}


def _first(model: nn.Module, value: Tensor) -> str:
    with probed(model) as probe:
        model(value)
    model(value * math.nan)  # the hooks are gone
    return probe.first


def test_an_overflow_in_fp16_is_found_where_it_arises() -> None:
    model = nn.Sequential(_Block(), nn.Identity()).half()
    value = torch.full((2, 4), 100.0, dtype=torch.float16)
    for weight in model.parameters():
        nn.init.constant_(weight, 0.5)
    assert _first(model, value) == ""
    model.get_parameter("0.second.weight").data.fill_(100.0)  # 4 x 200.5 x 100 > 65,504
    assert _first(model, value) == "0.second"
    model.get_parameter("0.first.weight").data.fill_(300.0)
    assert _first(model, value) == "0.first"


def test_integers_and_empty_outputs_are_no_matter() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 2)

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            return ids, self.table(ids)[:0]

    model = nn.ModuleDict({"lookup": Lookup()})
    with probed(model) as probe:
        model["lookup"](torch.tensor([0, 1]))
    assert probe.first == ""
