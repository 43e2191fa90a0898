"""From a `TensorSource` into a model, whose tensors must all be there and no others.

What belongs to a model are its parameters and its persistent buffers, such as the counters of a
router; see `model_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ds_seq.errors import UserError
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.weights.source import TensorFolder, TensorSource


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything that makes a model what it is, by name: parameters, then persistent buffers."""
    yield from model.named_parameters()
    yield from persistent_buffers(model)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are kept with the parameters; the same on every rank."""
    kept = model.state_dict().keys()  # the one public place that knows which are
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer


def expert_offsets(model: nn.Module) -> dict[str, int]:
    """Names of the parameters that hold one expert a row -> global index of their first row."""
    offsets = {}
    for prefix, module in model.named_modules():
        if isinstance(module, MoeFeedForward):
            for name, _ in module.experts.named_parameters():
                offsets[f"{prefix}.experts.{name}"] = module.experts.first_expert
    return offsets


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a checkpoint folder into `model`; nothing may be missing or left over.

    Raises:
        UserError: the folder is damaged or holds another model.
    """
    fill(model, TensorFolder(folder, "weights"))


@torch.no_grad()
def fill(model: nn.Module, source: TensorSource, leave_out: Sequence[str] = ()) -> None:
    """Copy all tensors of `source` into `model`; nothing may be missing or left over.

    A rank that holds some of the experts reads only those.

    Args:
        model: gets the tensors.
        source: has them.
        leave_out: names of modules that somebody else fills; the source may hold anything there.

    Raises:
        UserError: the source holds another model.
    """
    offsets = expert_offsets(model)
    elsewhere = tuple(f"{name}." for name in leave_out)
    wanted = {key for key in source.keys() if key.startswith(elsewhere)}
    for name, tensor in model_tensors(model):
        if name.startswith(elsewhere):
            continue
        first = offsets.get(name)
        total = None if first is None else _num_experts(model, name)
        stored = 0 if first is None else source.num_experts(name)
        if stored and stored != total:
            raise UserError(
                f"{source.path}: {name} has {stored} experts, the model wants {total}; "
                "the checkpoint is of another model"
            )
        tensor.copy_(read_like(source, name, tensor.shape, tensor.dtype, first))
        wanted.update(source.keys_of(name, total))
    foreign = sorted(source.keys() - wanted)
    if foreign:
        raise UserError(
            f"{source.path}: has {foreign[0]!r}, which the model has not; "
            "the checkpoint is of another model"
        )


def read_like(
    source: TensorSource,
    name: str,
    shape: torch.Size,
    dtype: torch.dtype,
    first_expert: int | None = None,
) -> Tensor:
    """The tensor `name` for one of `shape` and `dtype`.

    Floating-point formats may differ: the reader rounds. Whole numbers may not: a counter is no
    rounded value.

    Args:
        source: where it lies.
        name: of the tensor.
        shape: of all of it; where it has experts, of those wanted.
        dtype: of the tensor that it is for.
        first_expert: global index of the first one wanted; `None` where it has no experts.

    Raises:
        UserError: missing, of another shape or of another kind of number.
    """
    value = source.read_stacked(name, first_expert, shape[0] if shape else 0)
    problem = None
    if value.shape != shape:
        problem = f"has shape {tuple(value.shape)}, the model wants {tuple(shape)}"
    elif value.dtype != dtype and not (value.is_floating_point() and dtype.is_floating_point):
        problem = f"holds {value.dtype}, the model wants {dtype}"
    if problem is not None:
        raise UserError(f"{source.path}: {name} {problem}; the checkpoint is of another model")
    return value


def _num_experts(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name.rsplit(".experts.", 1)[0])
    assert isinstance(layer, MoeFeedForward)
    return layer.num_experts
