"""The few collectives that are not DeepSpeed's business; a process alone is its own answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ds_seq.distributed.group import rank, world_size
from ds_seq.errors import EXIT_USER_ERROR, UserError


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
    """Sum a float tensor over all ranks; the answer is where `values` was. A collective."""
    if world_size() == 1:
        return values
    total = values.to(_meeting_device())
    if total is values:
        total = values.clone()
    dist.all_reduce(total)
    return total.to(values.device)


def gather_pieces(pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return all ranks' tensors, on all: the first of each, in order of rank, then their second, ...

    Two collectives, of lengths and of contents, which are padded to the longest rank's.

    Args:
        pieces: (C, n) each; as many on every rank, n at will.
    """
    if world_size() == 1 or not pieces:
        return list(pieces)
    device = _meeting_device()
    lengths = torch.tensor([piece.shape[1] for piece in pieces], device=device)
    all_lengths = [torch.empty_like(lengths) for _ in range(world_size())]
    dist.all_gather(all_lengths, lengths)
    longest = int(torch.stack(all_lengths).sum(1).max())
    mine = torch.cat(list(pieces), 1).to(device)
    padded = mine.new_zeros(mine.shape[0], longest)
    padded[:, : mine.shape[1]] = mine
    everyone = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(everyone, padded)
    split = [
        all_of_rank[:, : int(of_rank.sum())].to(pieces[0].device).split(of_rank.tolist(), dim=1)
        for all_of_rank, of_rank in zip(everyone, all_lengths, strict=True)
    ]
    return [piece for one_of_each_rank in zip(*split, strict=True) for piece in one_of_each_rank]


def gather_objects(value: Any) -> list[Any] | None:
    """Return all ranks' objects, in order of rank, on rank 0; `None` elsewhere. A collective."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's object, on all ranks. A collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def shared_errors() -> Iterator[None]:
    """Let a `UserError` of any rank end all of them, told once.

    A collective at its end: all ranks enter and leave it. The ranks that found nothing wrong would
    otherwise wait for the others in their next collective, and those that did would all print.
    """
    mine: str | None = None
    try:
        yield
    except UserError as error:
        mine = str(error)
    if world_size() == 1:
        if mine is not None:
            raise UserError(mine)
        return
    messages: list[str | None] = [None] * world_size()
    dist.all_gather_object(messages, mine)
    told = list(dict.fromkeys(message for message in messages if message is not None))
    if not told:
        return
    if rank() == 0:
        raise UserError("\n".join(told))
    sys.exit(EXIT_USER_ERROR)


def _meeting_device() -> torch.device:
    """Return where tensors must be for a collective."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
