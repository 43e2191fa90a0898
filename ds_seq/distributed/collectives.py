"""The few collectives outside DeepSpeed; in a single process they return their input."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ds_seq.distributed.group import rank, world_size
from ds_seq.distributed.launch import World
from ds_seq.distributed.places import notes, place_of, seen_from_others, table
from ds_seq.errors import DivergedError, UserError

_MOST_NAMED = 5
_Said = TypeVar("_Said")


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is set on any rank; a collective."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor([float(flag)])).item())


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a float tensor over all ranks; the result is on the device of `values`. A collective."""
    if world_size() == 1:
        return values
    total = values.to(_meeting_device())
    if total is values:
        total = values.clone()
    dist.all_reduce(total)
    return total.to(values.device)


def max_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the largest of a float tensor over all ranks, by element. A collective."""
    if world_size() == 1:
        return values
    largest = values.to(_meeting_device(), copy=True)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.to(values.device)


def gather_pieces(pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gather the tensors of all ranks on every rank.

    The result lists the first tensor of each rank in rank order, then the second ones, and so on.
    Takes two collectives, for lengths and for contents, which are padded to the longest rank.

    Args:
        pieces: tensors (C, n); the same number on every rank, with any n.
    """
    if world_size() == 1 or not pieces:
        return list(pieces)
    device = _meeting_device()
    lengths = torch.tensor([piece.shape[1] for piece in pieces], device=device)
    all_lengths = [torch.empty_like(lengths) for _ in range(world_size())]
    dist.all_gather(all_lengths, lengths)
    longest = int(torch.stack(all_lengths).sum(1).max())
    local = torch.cat(list(pieces), 1).to(device)
    padded = local.new_zeros(local.shape[0], longest)
    padded[:, : local.shape[1]] = local
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    split = [
        all_of_rank[:, : int(of_rank.sum())].to(pieces[0].device).split(of_rank.tolist(), dim=1)
        for all_of_rank, of_rank in zip(gathered, all_lengths, strict=True)
    ]
    return [piece for one_of_each_rank in zip(*split, strict=True) for piece in one_of_each_rank]


def gather_objects(value: Any) -> list[Any] | None:
    """Return the objects of all ranks in rank order on rank 0, else None. A collective."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Return the object of rank 0 on all ranks. A collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def require_same(values: Mapping[str, Any], what: str) -> None:
    """Require that all ranks have the same values; a collective.

    Args:
        values: values by name.
        what: what they are, for the message.

    Raises:
        UserError: a rank has other values than rank 0; names them.
    """
    if world_size() == 1:
        return
    content = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    digests = [b""] * world_size()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) == 1:
        return
    contents: list[dict[str, str]] = [{}] * world_size()
    dist.all_gather_object(contents, content)
    with shared_errors():
        other = next(rank for rank, each in enumerate(digests) if each != digests[0])
        first, second = contents[0], contents[other]
        found = [
            f"{name} {first.get(name, 'not set')} and {second.get(name, 'not set')}"
            for name in {**first, **second}
            if first.get(name) != second.get(name)
        ]
        more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise UserError(
            f"ranks 0 and {other} have different {what}: {'; '.join(found[:_MOST_NAMED])}{more}; "
            "start all ranks with the same files and arguments"
        )


@contextmanager
def shared_errors() -> Iterator[None]:
    """Propagate a `UserError` of any rank to all ranks, and report it only once.

    The end of the block is a collective: all ranks must enter and leave it. Otherwise, ranks
    without an error would wait for the others in their next collective, and every rank with an
    error would print it.
    """
    found: tuple[type[UserError], str] | None = None
    try:
        yield
    except UserError as error:
        found = DivergedError if isinstance(error, DivergedError) else UserError, str(error)
    if world_size() == 1:
        if found is not None:
            raise found[0](found[1])
        return
    distinct = _distinct(found)
    if not distinct:
        return
    kind = distinct[0][0]
    if rank() == 0:
        raise kind("\n".join(text for _, text in distinct))
    sys.exit(kind.exit_code)


def agree_on_error(message: str | None) -> str | None:
    """Return the errors of all ranks, each once and one per line; None without any. A collective.

    Args:
        message: error of this rank, or None.
    """
    if world_size() == 1:
        return message
    return "\n".join(_distinct(message)) or None


def _distinct(value: _Said | None) -> list[_Said]:
    """Return what the ranks say, each once, in the order of the ranks. A collective."""
    of_ranks: list[_Said | None] = [None] * world_size()
    dist.all_gather_object(of_ranks, value)
    return list(dict.fromkeys(each for each in of_ranks if each is not None))


def _meeting_device() -> torch.device:
    """Return the device on which tensors must be for a collective."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def describe_places(world: World) -> list[str]:
    """Return a table of hosts, ranks and devices, with notes; empty but on rank 0. A collective."""
    places = gather_objects(place_of(world))
    if places is None:
        return []
    lines = table(seen_from_others(places)) if world.size > 1 else []
    return lines + [f"note: {note}" for note in notes(os.environ, world)]
