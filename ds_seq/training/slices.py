"""Slices of a state in host memory, and their way to the ranks that write whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq.distributed.exchange import Exchange


class HostMemory:
    """Gives tensors of host memory.

    Args:
        is_kept: use the same memory for the next tensor of the same name. Memory that the process
            has used before is filled about six times faster than fresh memory, whose pages the
            kernel has to clear. The last tensor must then be of no use any more.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor of any content that shares memory with no other, as safetensors wants."""
        held = self._held.get(name)
        if held is None or held.shape != torch.Size(shape) or held.dtype != dtype:
            held = torch.empty(tuple(shape), dtype=dtype, device="cpu")
            if self._is_kept:
                self._held[name] = held
        return held


class _Piece(NamedTuple):
    """Where a slice belongs."""

    rows: Sequence[Tensor]
    start: int
    length: int


class Mail:
    """The slices that ranks send to those that write the tensors.

    Each rank sends one message to each other one, in which slices follow each other in the order of
    `send` here and of `expect` there.

    Args:
        memory: where the messages are until they are sent.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._sends: dict[int, list[Tensor]] = {}
        self._expected: dict[int, list[_Piece]] = {}
        self._outgoing: dict[int, Tensor] = {}
        self._incoming: dict[int, int] = {}
        self._room = torch.empty(0)

    def send(self, rank: int, values: Tensor) -> None:
        """Send a slice (n,) in fp32, not empty, to a rank."""
        self._sends.setdefault(rank, []).append(values)

    def expect(self, rank: int, rows: Sequence[Tensor], start: int, length: int) -> None:
        """Expect a slice from a rank, for `fill_rows`."""
        self._expected.setdefault(rank, []).append(_Piece(rows, start, length))

    def pack(self) -> None:
        """Copy all slices to host memory, and get room for the longest message of others."""
        for rank, slices in self._sends.items():
            length = sum(values.numel() for values in slices)
            message = self._outgoing[rank] = self._memory.empty(f"to {rank}", [length])
            parts = torch.split(message, [values.numel() for values in slices])
            for part, values in zip(parts, slices, strict=True):
                part.copy_(values)
        self._sends.clear()
        for rank, pieces in self._expected.items():
            self._incoming[rank] = sum(piece.length for piece in pieces)
        if self._incoming:
            self._room = self._memory.empty("incoming", [max(self._incoming.values())])

    def deliver(self, exchange: Exchange) -> None:
        """Exchange the messages, and copy what has come to its place. All ranks call it.

        Raises:
            UserError: see `Exchange.swap`.
        """
        if not self._outgoing and not self._incoming:
            return
        for rank, message in exchange.swap(self._outgoing, self._incoming, self._room):
            pieces = self._expected[rank]
            slices = torch.split(message, [piece.length for piece in pieces])
            for piece, values in zip(pieces, slices, strict=True):
                fill_rows(piece.rows, piece.start, values)


def fill_rows(rows: Sequence[Tensor], start: int, values: Tensor) -> None:
    """Copy a slice of a flattened tensor to the rows of the tensor.

    Args:
        rows: contiguous tensors of the same size, which make up the whole.
        start: where in the flattened whole the slice begins.
        values: the slice (n,).
    """
    size, done = rows[0].numel(), 0
    while done < values.numel():
        row, offset = divmod(start + done, size)
        length = min(size - offset, values.numel() - done)
        rows[row].view(-1)[offset : offset + length].copy_(values[done : done + length])
        done += length
