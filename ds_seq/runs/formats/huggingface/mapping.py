"""Tensors of a Hugging Face model as ours.

Each of our tensors is made of one or several of theirs, joined along the first dimension. The same
table serves both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.runs.formats.imported import Entry


class Part(NamedTuple):
    """Part of one of our tensors.

    Attributes:
        name: name of the tensor of theirs.
        times: what theirs is multiplied by.
        skip: number of rows of theirs that are left out, positions before the first.
        is_table: whether rows are ids, whose order differs.
        is_source: whether they are ids of the source, where it has a vocabulary of its own.
        expert: how one expert of a stack is laid out: `matrix` (R, C) becomes (1, R, C), `turned`
            (R, C) becomes (1, C, R), `vector` (R,) becomes (1, 1, R); None: not an expert.
    """

    name: str
    times: float = 1.0
    skip: int = 0
    is_table: bool = False
    is_source: bool = False
    expert: Literal["matrix", "turned", "vector"] | None = None

    def ours(self, value: Tensor) -> Tensor:
        """Return the values of theirs as the rows of our tensor."""
        value = value[self.skip :] * self.times
        if self.expert is None:
            return value
        value = value.T if self.expert == "turned" else value
        return value.reshape(1, -1, value.shape[-1])

    def theirs(self, rows: Tensor) -> Tensor:
        """Return rows of our tensor as theirs, the inverse of `ours`; skipped rows are zeros."""
        value = rows / self.times
        if self.skip:
            value = torch.cat([value.new_zeros(self.skip, *value.shape[1:]), value])
        if self.expert is None:
            return value
        value = value.flatten() if self.expert == "vector" else value.squeeze(0)
        return value.T if self.expert == "turned" else value


Names = dict[str, list[Part]]
"""Our tensors by name -> what they are made of."""


def linear(ours: str, *theirs: str, bias: bool = True, factors: Sequence[float] = ()) -> Names:
    """Return the names of a linear map or a norm that is made of one or several of theirs."""
    scales = factors or [1.0] * len(theirs)
    kinds = ("weight", "bias") if bias else ("weight",)
    return {
        f"{ours}.{kind}": [
            Part(f"{name}.{kind}", scale) for name, scale in zip(theirs, scales, strict=True)
        ]
        for kind in kinds
    }


class Orders(NamedTuple):
    """Row of theirs for each of our ids, by side."""

    source: Sequence[int]
    target: Sequence[int]


def experts(
    ours: str, theirs: str, count: int, maps: tuple[str, str], bias: bool, times: float = 1.0
) -> Names:
    """Return the names of the experts of a layer, which are modules of their own there.

    Args:
        ours: name of our `Experts`.
        theirs: name of their container, which holds `expert_0`, `expert_1`, ...
        count: number of experts.
        maps: names of the two maps of an expert.
        bias: whether they have biases.
        times: what the output of an expert is multiplied by.
    """
    up, down = maps
    parts = {"w1": Part(f"{up}.weight", expert="turned")}
    parts["w2"] = Part(f"{down}.weight", times, expert="matrix")
    if bias:
        parts["b1"] = Part(f"{up}.bias", expert="vector")
        parts["b2"] = Part(f"{down}.bias", times, expert="vector")
    return {
        f"{ours}.{name}": [
            part._replace(name=f"{theirs}.expert_{number}.{part.name}") for number in range(count)
        ]
        for name, part in parts.items()
    }


def take(
    names: Names, name: str, theirs: Mapping[str, Tensor], orders: Orders, path: str
) -> Tensor:
    """Make one of our tensors.

    Args:
        names: all names.
        name: name of the tensor.
        theirs: tensors of theirs, which have all that `names` needs.
        orders: rows of theirs for our ids.
        path: the folder, for messages.

    Raises:
        UserError: a table has another number of rows.
    """
    rows = []
    for part in names[name]:
        value = theirs[part.name].float()
        if part.is_table:
            value = value.squeeze(0) if value.size(0) == 1 else value  # a bias is (1, V)
            order = orders.source if part.is_source else orders.target
            if len(value) != len(order):
                raise UserError(
                    f"{path}: {part.name} has the shape {tuple(value.shape)}, but config.json says "
                    f"vocab_size {len(order)}"
                )
            value = value[list(order)]
        rows.append(part.ours(value))
    return torch.cat(rows)


def account(names: Names, theirs: Iterable[str], copies: Mapping[str, str]) -> list[Entry]:
    """Return what becomes of each tensor of theirs.

    Args:
        names: all names.
        theirs: names of their tensors.
        copies: tensors that need not be read -> why.
    """
    used = {}
    for ours, parts in names.items():
        for part in parts:
            how = "renamed" if len(parts) == 1 else "joined"
            notes = []
            if part.skip:
                notes.append(f"without its first {part.skip} rows")
            if part.times != 1.0:
                notes.append(f"times {part.times:g}")
            used[part.name] = Entry(part.name, ours, how, ", ".join(notes))
    return [used.get(name) or Entry(name, "", "left", copies.get(name, "")) for name in theirs]
