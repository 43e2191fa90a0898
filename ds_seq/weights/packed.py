"""Packed exports: weights of one or two bits, without those that they were rounded from.

A ternary weight takes 1.6 bits (five in a byte), a binary one 1 bit (eight). For each parameter
NAME whose maps are rounded (`ds_seq.modules.bitlinear`), the safetensors file has two tensors::

    NAME         uint8 (..., bytes)  the signs, row by row, of a matrix or of each expert's
    NAME.scales  float32 (..., P)    the scale of each part of a fused map

A byte of ternary weights is the sum of (sign + 1) 3^n over its five weights n = 0 ... 4; one of
binary weights has bit n set if weight n is 1. What is left of the last byte is 0. The header's
entry `ds_seq.packed` is JSON: {NAME: {"values": "ternary" or "binary", "shape": [...], "axis": -2
or -1, "widths": [...]}}: the shape of the whole parameter, the dimension of its outputs, and the
outputs of each part. Everything else, and the checksum, is as in any export.

Shapes: E experts, O outputs, I inputs, P parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from ds_seq.errors import UserError
from ds_seq.names import BitWeights
from ds_seq.records import parse_json, record
from ds_seq.weights.fill import expert_offsets, model_tensors
from ds_seq.weights.source import TensorFile

if TYPE_CHECKING:
    from ds_seq.modules.bitlinear import RoundedParameter

PACKED_KEY = "ds_seq.packed"
_SCALES = ".scales"
_PER_BYTE: dict[BitWeights, int] = {"ternary": 5, "binary": 8}
_BASE: dict[BitWeights, int] = {"ternary": 3, "binary": 2}


@runtime_checkable
class HoldsBits(Protocol):
    """A module with parameters that are rounded to one or two bits."""

    def rounded_parameters(self) -> dict[str, RoundedParameter]:
        """Return the rounded parameters by name; none if its maps are not rounded."""

    def restore_scales(self, scales: Mapping[str, Tensor]) -> None:
        """Take the scales (..., P) of parameters that were rounded before, by name."""


@record
class PackedEntry(TypedDict):
    """How a parameter is packed; see the module's description."""

    values: BitWeights
    shape: list[int]
    axis: Literal[-2, -1]
    widths: list[int]


def pack_signs(signs: Tensor, values: BitWeights) -> Tensor:
    """Pack the signs of each matrix (..., a, b) into bytes (..., n), uint8."""
    count, base = _PER_BYTE[values], _BASE[values]
    digits = signs.flatten(-2).to(torch.int16)
    digits = digits + 1 if values == "ternary" else digits.clamp(min=0)
    digits = nn.functional.pad(digits, (0, -digits.size(-1) % count))
    powers = torch.tensor([base**place for place in range(count)], dtype=torch.int16)
    return (digits.unflatten(-1, (-1, count)) * powers).sum(-1).to(torch.uint8)


def unpack_signs(packed: Tensor, shape: tuple[int, int], values: BitWeights) -> Tensor:
    """Return the signs (..., a, b), int8, that `pack_signs` packed; `shape` is (a, b)."""
    count, base = _PER_BYTE[values], _BASE[values]
    byte = torch.arange(256).unsqueeze(1)
    digits = byte // torch.tensor([base**place for place in range(count)]) % base
    table = (digits - 1 if values == "ternary" else 2 * digits - 1).to(torch.int8)
    signs = table[packed.long()].flatten(-2)[..., : math.prod(shape)]
    return signs.unflatten(-1, shape)


@torch.no_grad()
def packed_tensors(model: nn.Module, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a packed export, and the header's entry `PACKED_KEY`.

    Args:
        model: the whole model, in float32 on the CPU.
        dtype: floating-point format of all other tensors.
    """
    tensors = {
        name: value.detach().to(dtype if value.is_floating_point() else None).contiguous()
        for name, value in model_tensors(model)
    }
    entries = {}
    for prefix, module in model.named_modules():
        if isinstance(module, HoldsBits):
            for part, rounded in module.rounded_parameters().items():
                name = f"{prefix}.{part}"
                tensors[name] = pack_signs(rounded.signs, rounded.values)
                tensors[name + _SCALES] = rounded.scales.contiguous()
                shape, widths = list(rounded.signs.shape), list(rounded.widths)
                entries[name] = PackedEntry(
                    values=rounded.values, shape=shape, axis=rounded.axis, widths=widths
                )
    return tensors, json.dumps(entries)


class PackedFile(TensorFile):
    """Read access to a packed export; packed parameters are read as their sign times their scale.

    Such a weight has another mean than the one it was rounded from, so a model that reads it needs
    the scales as well; see `restore_scales`.

    Args:
        path: file to read.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        text = self.metadata()[PACKED_KEY].encode()
        self.entries = parse_json(text, dict[str, PackedEntry], path, "export it again")
        for name, entry in self.entries.items():
            if not self._fits(name, entry):
                raise UserError(f"{path}: damaged ({name!r} is not as described); export it again")
        self._keys -= {name + _SCALES for name in self.entries}

    def num_values(self) -> int:
        """See `TensorSource.num_values`."""
        packed = sum(math.prod(entry["shape"]) for entry in self.entries.values())
        plain = self._keys - self.entries.keys()
        return packed + sum(math.prod(self._file.get_slice(key).get_shape()) for key in plain)

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """See `TensorSource.read_stacked`."""
        if name not in self.entries:
            return super().read_stacked(name, first_expert, num_experts)
        entry = self.entries[name]
        codes = self._rows(name, first_expert, num_experts)
        signs = unpack_signs(codes, (entry["shape"][-2], entry["shape"][-1]), entry["values"])
        scales = self.scales(name, first_expert, num_experts)  # (..., P)
        widths = torch.tensor(entry["widths"])
        of_outputs = scales.repeat_interleave(widths, -1).unsqueeze(-3 - entry["axis"])
        weight: Tensor = signs * of_outputs
        return weight

    def _fits(self, name: str, entry: PackedEntry) -> bool:
        """Return whether the tensors of a packed parameter have the shapes that follow from it."""
        if not {name, name + _SCALES} <= self._keys or len(entry["shape"]) < 2:
            return False
        *outer, rows, columns = entry["shape"]
        size = -(-rows * columns // _PER_BYTE[entry["values"]])
        codes, scales = (self._file.get_slice(key).get_shape() for key in (name, name + _SCALES))
        return (
            sum(entry["widths"]) == entry["shape"][entry["axis"]]
            and codes == [*outer, size]
            and scales == [*outer, len(entry["widths"])]
        )

    def scales(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """Return the scales (..., P) of a packed parameter, of all or of some experts."""
        return self._rows(name + _SCALES, first_expert, num_experts)

    def _rows(self, key: str, first_expert: int | None, num_experts: int) -> Tensor:
        stored: Any = self._file.get_slice(key)
        rows: Tensor = (
            stored[:] if first_expert is None else stored[first_expert : first_expert + num_experts]
        )
        return rows


def open_file(path: Path) -> TensorFile:
    """Open an exported file, packed or not.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """
    file = TensorFile(path)
    return PackedFile(path) if PACKED_KEY in file.metadata() else file


def restore_scales(model: nn.Module, source: PackedFile) -> None:
    """Give a model that was filled from a packed export the scales of its rounded weights.

    Args:
        model: the model, on its final device and in its final precision.
        source: the export.
    """
    offsets = expert_offsets(model)
    for prefix, module in model.named_modules():
        if not isinstance(module, HoldsBits):
            continue
        scales = {}
        for part, parameter in module.named_parameters(recurse=False):  # type: ignore[attr-defined]
            name = f"{prefix}.{part}"
            if name in source.entries:
                scales[part] = source.scales(name, offsets.get(name), len(parameter))
        if scales:
            module.restore_scales(scales)
