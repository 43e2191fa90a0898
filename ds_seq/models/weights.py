"""Weights on disk: safetensors files that any number of ranks can read, whoever wrote them.

A folder holds ``<kind>.<n>.safetensors`` files and a JSON file that lists them with their sizes.
Dense tensors go by parameter name, experts by parameter name and global expert index
(``encoder.layers.1.feed_forward.experts.w1.5``), so that every expert-parallel size finds its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.moe.layer import MoeFeedForward

CHECKPOINTS = "checkpoints"  # folder of a run
INDEX_FILE = "index.json"  # in that folder: which checkpoint is the last, which are the best
META_FILE = "checkpoint.json"
FORMAT_VERSION = 1


def expert_offsets(model: nn.Module) -> dict[str, int]:
    """Names of the parameters that hold one expert a row -> global index of their first row."""
    offsets = {}
    for prefix, module in model.named_modules():
        if isinstance(module, MoeFeedForward):
            for name, _ in module.experts.named_parameters():
                offsets[f"{prefix}.experts.{name}"] = module.experts.first_expert
    return offsets


def expert_key(name: str, expert: int) -> str:
    """Key of one expert's slice of the parameter ``name``."""
    return f"{name}.{expert}"


def read_meta(folder: Path) -> dict[str, Any]:
    """The JSON file of a checkpoint folder.

    Raises:
        UserError: no such folder, not a checkpoint, or one of another format.
    """
    path = folder / META_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no checkpoint here ({META_FILE} is missing)")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version, files = meta["format_version"], meta["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); use another checkpoint") from error
    if version != FORMAT_VERSION or not isinstance(files, dict):
        raise UserError(
            f"{path}: checkpoint format {version}, this program reads {FORMAT_VERSION}; "
            "use the version of ds_seq that wrote it"
        )
    result: dict[str, Any] = meta
    return result


class TensorFolder:
    """Read access to the tensors of one kind (``weights``, ``optimizer``) of a checkpoint folder.

    Args:
        folder: the checkpoint.
        kind: first part of the file names.

    Raises:
        UserError: a file is missing, truncated or damaged.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._where: dict[str, Any] = {}
        sizes = {n: s for n, s in read_meta(folder)["files"].items() if n.split(".")[0] == kind}
        for name, size in sorted(sizes.items()):
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing; the checkpoint is incomplete, use another one")
            if path.stat().st_size != size:
                raise UserError(
                    f"{path}: {path.stat().st_size} bytes instead of {size}; "
                    "the file is truncated, use another checkpoint"
                )
            try:
                handle = safe_open(str(path), framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); use another checkpoint") from error
            for key in handle.keys():  # noqa: SIM118 - not a dict
                self._where[key] = handle

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def keys(self) -> set[str]:
        """All keys of this kind."""
        return set(self._where)

    def read(self, key: str) -> Tensor:
        """The tensor ``key``, on the CPU.

        Raises:
            UserError: there is none.
        """
        if key not in self._where:
            raise UserError(
                f"{self.folder}: has no tensor {key!r}; the checkpoint is of another model"
            )
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor

    def read_stacked(self, key: str, first_expert: int | None, num_experts: int) -> Tensor:
        """The tensor ``key``, or its slices of ``num_experts`` experts as one where it has experts.

        Raises:
            UserError: one of them is missing.
        """
        if first_expert is None:
            return self.read(key)
        ids = range(first_expert, first_expert + num_experts)
        return torch.stack([self.read(expert_key(key, expert)) for expert in ids])

    def read_parameter(self, name: str, shape: torch.Size, first_expert: int | None) -> Tensor:
        """A parameter of ``shape``; experts ``first_expert``, ... stacked where it holds experts.

        Raises:
            UserError: missing, or of another shape.
        """
        value = self.read_stacked(name, first_expert, shape[0])
        if value.shape != shape:
            raise UserError(
                f"{self.folder}: {name} has shape {tuple(value.shape)}, the model wants "
                f"{tuple(shape)}; the checkpoint is of another model"
            )
        return value


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a checkpoint folder into ``model``; nothing may be missing or left over.

    Raises:
        UserError: the folder is damaged or holds another model.
    """
    tensors = TensorFolder(folder, "weights")
    offsets = expert_offsets(model)
    wanted: set[str] = set()
    for name, parameter in model.named_parameters():
        first = offsets.get(name)
        parameter.copy_(tensors.read_parameter(name, parameter.shape, first))
        if first is None:
            wanted.add(name)
        else:  # those of other ranks as well
            wanted.update(expert_key(name, expert) for expert in range(_num_experts(model, name)))
    foreign = sorted(tensors.keys() - wanted)
    if foreign:
        raise UserError(
            f"{folder}: has {foreign[0]!r}, which the model has not; "
            "the checkpoint is of another model"
        )


def _num_experts(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name.rsplit(".experts.", 1)[0])
    assert isinstance(layer, MoeFeedForward)
    return layer.num_experts
