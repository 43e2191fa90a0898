"""The tensors of a model of which only some layers are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ds_seq.names import LAYER_NAME, Stack
from ds_seq.weights.source import TensorSource


class FewerLayers:
    """A source without some layers; the others are numbered from 0.

    Args:
        base: the whole model; its path and files are those of all tensors.
        layers: indices of the layers to use, for each stack, in the order of the new model.
    """

    def __init__(self, base: TensorSource, layers: Mapping[Stack, Sequence[int]]) -> None:
        self.path: Path = base.path
        self.files: list[Path] = base.files
        self._base = base
        self._layers: dict[str, Sequence[int]] = dict(layers.items())

    def _stored(self, name: str) -> str:
        """Return the name in the whole model."""
        match = LAYER_NAME.match(name)
        if match is None:
            return name
        return f"{match[1]}.layers.{self._layers[match[1]][int(match[2])]}.{name[match.end() :]}"

    def keys(self) -> set[str]:
        """See `TensorSource.keys`; without those of other layers."""
        found = set()
        for key in self._base.keys():
            match = LAYER_NAME.match(key)
            if match is None:
                found.add(key)
                continue
            for new, old in enumerate(self._layers[match[1]]):
                if old == int(match[2]):
                    found.add(f"{match[1]}.layers.{new}.{key[match.end() :]}")
        return found

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        """See `TensorSource.keys_of`."""
        stored = self._stored(name)
        return [name + key[len(stored) :] for key in self._base.keys_of(stored, num_experts)]

    def num_experts(self, name: str) -> int:
        """See `TensorSource.num_experts`."""
        return self._base.num_experts(self._stored(name))

    def num_values(self) -> int:
        """See `TensorSource.num_values`; those of the whole model."""
        return self._base.num_values()

    def read(self, key: str) -> Tensor:
        """See `TensorSource.read`."""
        return self._base.read(self._stored(key))

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """See `TensorSource.read_stacked`."""
        return self._base.read_stacked(self._stored(name), first_expert, num_experts)

    def verify(self) -> None:
        """See `TensorSource.verify`."""
        self._base.verify()
