"""Keys and values of what beam search has decoded so far, never moved when hypotheses are.

A hypothesis of beam search is a path through a tree: when the beam is re-ordered, its past lies
in other rows. Instead of copying keys and values into the new order, every key stays where it was
written, all hypotheses of a sentence look at all keys of that sentence, and a small mask tells
which of them lie on the path of which hypothesis. The mask is all that a re-ordering touches.

Shapes: B sentences, K beam width, N = B K hypotheses (row n belongs to sentence n // K), H heads,
Dh width of a head, L decoded length, C capacity (positions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_INITIAL_CAPACITY = 32


def is_identity(rows: Tensor, count: int) -> bool:
    """Whether `rows` is 0 .. count - 1, where knowing that is free: on a CPU.

    On a GPU the answer would cost a synchronisation, which is dearer than the copy it may save.
    """
    if rows.device.type != "cpu" or len(rows) != count:
        return False
    return torch.equal(rows, torch.arange(count))


def _grown(buffer: Tensor, dim: int, size: int) -> Tensor:
    """A larger buffer with the old contents in front along `dim`."""
    shape = list(buffer.shape)
    shape[dim] = size
    larger = buffer.new_empty(shape)
    larger.narrow(dim, 0, buffer.size(dim)).copy_(buffer)
    return larger


class BeamPaths:
    """Which of the keys written so far belong to which hypothesis; shared by all layers.

    Args:
        num_sentences: B.
        beam: K.
        max_length: positions that will ever be asked for; bounds the capacity.
        like: gives dtype and device.
    """

    def __init__(self, num_sentences: int, beam: int, max_length: int, like: Tensor) -> None:
        self.beam = beam
        self.max_length = max_length
        self.length = 0
        self.capacity = min(_INITIAL_CAPACITY, max_length)
        self.mask: Tensor | None = None
        blocked = like.new_full((beam, beam), -math.inf).fill_diagonal_(0.0)
        self._newest = blocked.repeat(num_sentences, 1)  # (N, K): each sees its own key only
        self._paths = self._newest.new_empty(num_sentences * beam, self.capacity * beam)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self._newest)

    def advance(self) -> None:
        """Open one more position, in which every hypothesis sees the key that it writes."""
        if self.length == self.max_length:
            raise ValueError(f"the cache was made for {self.max_length} positions")
        if self.length == self.capacity:
            self.capacity = min(2 * self.capacity, self.max_length)
            self._paths = _grown(self._paths, 1, self.capacity * self.beam)
        used = self.length * self.beam
        self._paths[:, used : used + self.beam] = self._newest
        self.length += 1
        if self.beam > 1:  # a single hypothesis sees everything: no mask
            rows = self._paths[:, : used + self.beam]
            self.mask = rows.view(-1, 1, self.beam, used + self.beam)  # (B, 1, K, L K)

    def reorder(self, rows: Tensor) -> None:
        """Hypothesis n continues what hypothesis rows[n] of the same sentence was."""
        if self.beam > 1 and not is_identity(rows, self.num_rows):
            used = self._paths[:, : self.length * self.beam]
            used.copy_(used.index_select(0, rows))

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep the sentences `kept` (B'), in that order."""
        rows = (kept[:, None] * self.beam + torch.arange(self.beam, device=kept.device)).flatten()
        self._newest = self._newest.index_select(0, rows)
        self._paths = self._paths.index_select(0, rows)
        self.mask = None


class KeyValueBuffer:
    """Keys and values of one self-attention call, for all hypotheses; grows geometrically."""

    def __init__(self, paths: BeamPaths) -> None:
        self._paths = paths
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def length(self) -> int:
        """Position of the token that is being decoded."""
        return self._paths.length - 1

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, K, L K), added to scores; None when everything may be seen."""
        return self._paths.mask

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values (B, H, K, Dh); return all of them (B, H, L K, Dh)."""
        beam, capacity = self._paths.beam, self._paths.capacity * self._paths.beam
        if self._key is None or self._value is None:
            shape = (*key.shape[:2], capacity, key.size(-1))
            self._key, self._value = key.new_empty(shape), value.new_empty(shape)
        elif self._key.size(2) < capacity:
            self._key = _grown(self._key, 2, capacity)
            self._value = _grown(self._value, 2, capacity)
        stop = self._paths.length * beam
        self._key[:, :, stop - beam : stop] = key
        self._value[:, :, stop - beam : stop] = value
        return self._key[:, :, :stop], self._value[:, :, :stop]

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep the sentences `kept` (B'), in that order."""
        if self._key is not None and self._value is not None:
            self._key = self._key.index_select(0, kept)
            self._value = self._value.index_select(0, kept)
