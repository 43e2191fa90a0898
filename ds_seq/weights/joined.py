"""Parts of a model in a file of their own, and the fingerprint of the model that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.weights.selection import adapter_of
from ds_seq.weights.source import TensorFile, TensorSource

BASE_KEY = "ds_seq.base_sha256"
"""In the header of a file of parts: `base_fingerprint` of the other tensors."""
ROUNDED_KEY = "ds_seq.base_rounded"
"""In that header: precision of the training, to which it has rounded the tensors that it froze."""
PARTS_KEY = "ds_seq.parts"
"""In that header: the parts, see `ds_seq.weights.selection`, separated by spaces."""


class JoinedSource:
    """The tensors of a model, some of which are in another file.

    Args:
        base: the model; its path is that of all tensors.
        part: the other file, whose tensors go before those of the model.
    """

    def __init__(self, base: TensorSource, part: TensorFile) -> None:
        self.path: Path = base.path
        self._base, self._part = base, part
        self.files: list[Path] = [*base.files, *part.files]

    def _of(self, name: str) -> TensorSource:
        in_part = name in self._part.keys() or self._part.num_experts(name) > 0
        return self._part if in_part else self._base

    def check_base(self, names: Iterable[str]) -> None:
        """Refuse parts that belong to another model.

        Args:
            names: names of all tensors of the model, with the parts.

        Raises:
            UserError: the other tensors are not those with which the parts were trained.
        """
        header = self._part.metadata()
        kept = base_of(names, self._part.keys())
        found = base_fingerprint(self._read_whole, kept, header.get(ROUNDED_KEY, "fp32"))
        if found != header[BASE_KEY]:
            raise UserError(
                f"{self._part.path}: belongs to other weights than {self.path}: to "
                f"{header[BASE_KEY][:12]}, not {found[:12]}; use the model and the checkpoint with "
                "which it was trained"
            )

    def _read_whole(self, name: str) -> Tensor:
        experts = 0 if name in self._base.keys() else self._base.num_experts(name)
        return self._base.read_stacked(name, 0 if experts else None, experts)

    def keys(self) -> set[str]:
        """See `TensorSource.keys`."""
        return self._base.keys() | self._part.keys()

    def keys_of(self, name: str, num_experts: int | None) -> list[str]:
        """See `TensorSource.keys_of`."""
        return self._of(name).keys_of(name, num_experts)

    def num_experts(self, name: str) -> int:
        """See `TensorSource.num_experts`."""
        return self._of(name).num_experts(name)

    def num_values(self) -> int:
        """See `TensorSource.num_values`."""
        return self._base.num_values() + self._part.num_values()

    def read(self, key: str) -> Tensor:
        """See `TensorSource.read`."""
        return self._of(key).read(key)

    def read_stacked(self, name: str, first_expert: int | None, num_experts: int) -> Tensor:
        """See `TensorSource.read_stacked`."""
        return self._of(name).read_stacked(name, first_expert, num_experts)

    def verify(self) -> None:
        """See `TensorSource.verify`."""
        self._base.verify()
        self._part.verify()


def base_of(names: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Return the tensors on which some parts of a model depend, sorted.

    Adapters do not depend on each other.

    Args:
        names: all tensors of the model.
        parts: the tensors of the parts.
    """
    parts = set(parts)
    has_adapters = any(adapter_of(name) is not None for name in parts)
    return sorted(
        name for name in set(names) - parts if not (has_adapters and adapter_of(name) is not None)
    )


def base_fingerprint(read: Callable[[str], Tensor], names: Iterable[str], rounded: str) -> str:
    """Return a SHA-256 of tensors with their names and shapes.

    Args:
        read: returns a tensor by name, experts stacked.
        names: names of the tensors.
        rounded: precision to which to round them, `fp32`, `bf16` or `fp16`.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[rounded]
    digest = hashlib.sha256()
    for name in sorted(names):
        value = read(name).detach().cpu()
        if value.is_floating_point():
            value = value.to(dtype).float()
        digest.update(f"{name} {tuple(value.shape)};".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
