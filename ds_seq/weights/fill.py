"""Copy weights from a `TensorSource` into a model.

The source must hold exactly the tensors of the model: its parameters and its persistent buffers,
such as the bias steps of a router; see `model_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.weights.selection import Selection, listed
from ds_seq.weights.source import TensorFolder, TensorSource


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over all tensors of a model by name: parameters, then persistent buffers."""
    yield from model.named_parameters()
    yield from persistent_buffers(model)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the buffers that are saved with the parameters; equal on all ranks."""
    persistent = model.state_dict().keys()  # the only public way to find them
    for name, buffer in model.named_buffers():
        if name in persistent:
            yield name, buffer


def expert_offsets(model: nn.Module) -> dict[str, int]:
    """Map the names of parameters with one expert per row to the first expert's global index."""
    offsets = {}
    for prefix, module in model.named_modules():
        if isinstance(module, MoeFeedForward):
            for name, _ in module.experts.named_parameters():
                offsets[f"{prefix}.experts.{name}"] = module.experts.first_expert
    return offsets


class Allowed(NamedTuple):
    """The differences between a model and a source that are no mistake."""

    missing: Selection = Selection(())
    """Tensors of the model that the source need not have; they keep their values."""
    unexpected: Selection = Selection(())
    """Tensors of the source that the model need not have."""
    hint: str = ""
    """What to do about a difference that is not allowed, to follow the message."""


class Differences(NamedTuple):
    """The differences between a model and the source that has filled it; all were allowed."""

    missing: list[str]
    """Tensors of the model that the source does not have."""
    unexpected: list[str]
    """Tensors of the source that the model does not have."""


def load_weights(
    model: nn.Module,
    folder: Path,
    checked: bool = False,
    allowed: Allowed = Allowed(),  # noqa: B008  (immutable)
) -> None:
    """Copy the weights of a checkpoint folder into `model`; the tensors must match.

    Args:
        model: model to fill.
        folder: folder of the checkpoint.
        checked: see `TensorFolder`.
        allowed: what may differ.

    Raises:
        UserError: the folder is damaged or belongs to another model.
    """
    fill(model, TensorFolder(folder, "weights", checked), allowed=allowed)


@torch.no_grad()
def fill(
    model: nn.Module,
    source: TensorSource,
    leave_out: Sequence[str] = (),
    allowed: Allowed = Allowed(),  # noqa: B008  (immutable)
) -> Differences:
    """Copy all tensors of `source` into `model`; the tensors must match as far as `allowed`.

    A rank reads only the experts that it holds.

    Args:
        model: model to fill.
        source: tensors to copy.
        leave_out: names of modules to skip; the source may hold any tensors for them.
        allowed: what may differ.

    Returns:
        What differs.

    Raises:
        UserError: the source is damaged or belongs to another model.
    """
    offsets = expert_offsets(model)
    skipped = tuple(f"{name}." for name in leave_out)
    keys = source.keys()
    expected = {key for key in keys if key.startswith(skipped)}
    missing = []
    for name, tensor in model_tensors(model):
        if name.startswith(skipped):
            continue
        first = offsets.get(name)
        total = None if first is None else _num_experts(model, name)
        stored = 0 if first is None else source.num_experts(name)
        if stored and stored != total:
            raise UserError(
                f"{source.path}: {name} has {stored} experts, the model expects {total}; "
                "the checkpoint belongs to another model"
            )
        if not stored and name not in keys:
            missing.append(name)
            continue
        tensor.copy_(read_like(source, name, tensor.shape, tensor.dtype, first))
        expected.update(source.keys_of(name, total))
    found = Differences(missing, sorted(keys - expected))
    _refuse(source, found, allowed)
    source.verify()
    return found


def _refuse(source: TensorSource, found: Differences, allowed: Allowed) -> None:
    """Refuse differences that are not allowed, all of them in one message."""
    missing = [name for name in found.missing if not allowed.missing.has(name)]
    foreign = [name for name in found.unexpected if not allowed.unexpected.has(name)]
    problems = []
    if missing:
        problems.append(f"has no tensor {listed(missing)}")
    if foreign:
        problems.append(f"has {listed(foreign)}, which the model does not have")
    if problems:
        raise UserError(
            f"{source.path}: {', and '.join(problems)}; the checkpoint belongs to another model"
            f"{allowed.hint}"
        )


def read_like(
    source: TensorSource,
    name: str,
    shape: torch.Size,
    dtype: torch.dtype,
    first_expert: int | None = None,
) -> Tensor:
    """Read the tensor `name` for a destination of `shape` and `dtype`.

    Floating-point formats may differ, because copying rounds. Integer formats must match, because
    counters must not be rounded.

    Args:
        source: source to read from.
        name: name of the tensor.
        shape: shape of the destination; of the experts to read if the tensor has experts.
        dtype: data type of the destination.
        first_expert: global index of the first expert to read; `None` if there are no experts.

    Raises:
        UserError: the tensor is missing, or its shape or kind of number differs.
    """
    value = source.read_stacked(name, first_expert, shape[0] if shape else 0)
    problem = None
    if value.shape != shape:
        problem = f"has shape {tuple(value.shape)}, the model expects {tuple(shape)}"
    elif value.dtype != dtype and not (value.is_floating_point() and dtype.is_floating_point):
        problem = f"holds {value.dtype}, the model expects {dtype}"
    if problem is not None:
        raise UserError(f"{source.path}: {name} {problem}; the checkpoint belongs to another model")
    return value


def _num_experts(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name.rsplit(".experts.", 1)[0])
    assert isinstance(layer, MoeFeedForward)
    return layer.num_experts
