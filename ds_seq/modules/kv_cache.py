"""Keys and values of what beam search has decoded so far, hardly ever moved when hypotheses are.

A hypothesis of beam search is a path through a tree: when the beam is re-ordered, its past lies
in other rows. Instead of copying keys and values into the new order, every key stays where it was
written, all hypotheses of a sentence look at all keys of that sentence, and a small mask tells
which of them lie on the path of which hypothesis. The mask is all that a re-ordering touches.

Hypotheses of a sentence soon descend from one of its earlier hypotheses, so most keys are on
nobody's path any more. Whenever the room is used up, the newer ones of these are dropped: a
sentence then holds little more than one key a position, where K separate rows would hold K.

Shapes: B sentences, K beam width, N = B K hypotheses (row n belongs to sentence n // K), H heads,
Dh width of a head, C columns in use (keys of a sentence, those of all its hypotheses), R room
(columns).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS_OF_ROOM = 16
"""For so many steps there is room at first."""
_STEPS_OF_DOUBT = 8
"""What is as new as that may still die; and for so many steps there is room after each look."""


class Kept(NamedTuple):
    """Sentences that stay in a batch: `size` of them, those at `origins` moved to `places`."""

    size: int
    places: Tensor
    origins: Tensor

    @classmethod
    def of(cls, kept: Tensor) -> Kept:
        """From the numbers (B',) of the sentences that become sentences 0 .. B' - 1."""
        places = (kept != torch.arange(len(kept), device=kept.device)).nonzero().squeeze(1)
        return cls(len(kept), places, kept.index_select(0, places))

    def apply(self, rows: Tensor) -> Tensor:
        """The rows (B, ...) of these sentences, (B', ...), in the same memory."""
        if len(self.places):
            rows.index_copy_(0, self.places, rows.index_select(0, self.origins))
        return rows[: self.size]


def is_identity(rows: Tensor, count: int) -> bool:
    """Whether `rows` is 0 .. count - 1, where knowing that is free: on a CPU.

    On a GPU the answer would cost a synchronization, which is dearer than the copy it may save.
    """
    if rows.device.type != "cpu" or len(rows) != count:
        return False
    return torch.equal(rows, torch.arange(count))


class BeamPaths:
    """Which of the keys in memory belong to which hypothesis; shared by all layers.

    Args:
        num_sentences: B.
        beam: K.
        max_length: positions that will ever be asked for; bounds the room.
        like: gives dtype and device.
    """

    def __init__(self, num_sentences: int, beam: int, max_length: int, like: Tensor) -> None:
        self.beam = beam
        self.max_length = max_length
        self.length = 0
        self.used = 0
        self.room = min(_STEPS_OF_ROOM, max_length) * beam
        self.mask: Tensor | None = None
        self.generation = 0
        """How often keys have changed their places; a buffer of an earlier one must follow."""
        self._positions: Tensor | None = None  # (B, R) int64, where somebody asks for them
        self._live: Tensor | None = None  # (B, count) what is to be at column _start and behind it
        self._start = 0
        self._settled = 0  # columns before this one are not looked at any more
        blocked = like.new_full((beam, beam), -math.inf).fill_diagonal_(0.0)
        self._newest = blocked.repeat(num_sentences, 1)  # (N, K): each sees its own key only
        self._paths = self._newest.new_empty(num_sentences * beam, self.room)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self._newest)

    def track_positions(self) -> None:
        """Keep the positions of keys, too; to be asked for before the first step."""
        if self.length:
            raise ValueError("positions of keys must be asked for before the first step")
        num_sentences = self.num_rows // self.beam
        zeros = torch.zeros(num_sentences, self.room, dtype=torch.int64)
        self._positions = zeros.to(self._paths.device)

    @property
    def key_positions(self) -> Tensor:
        """(B, C) int64: the position at which the key in each column was written.

        Columns that `mask` hides from all hypotheses may hold any earlier position.

        Raises:
            ValueError: nobody has called `track_positions`.
        """
        if self._positions is None:
            raise ValueError("call track_positions before the first step")
        return self._positions[:, : self.used]

    def advance(self) -> None:
        """Open one more position, in which every hypothesis sees the key that it writes."""
        if self.length == self.max_length:
            raise ValueError(f"the cache was made for {self.max_length} positions")
        if self.used + self.beam > self.room:
            self._make_room()
        start = self.used
        self.used += self.beam
        self._paths[:, start : self.used] = self._newest
        if self._positions is not None:
            self._positions[:, start : self.used] = self.length
        self.length += 1
        if self.beam > 1:  # a single hypothesis sees everything: no mask
            rows = self._paths[:, : self.used]
            self.mask = rows.view(-1, 1, self.beam, self.used)  # (B, 1, K, C)

    def _make_room(self) -> None:
        """Drop keys on nobody's path; add room where too little comes of that."""
        used = self.used
        self._live = None
        if self.beam > 1:
            recent = self._paths[:, self._settled : used].view(-1, self.beam, used - self._settled)
            live = (recent == 0).any(1)  # (B, C - settled)
            count = int(live.sum(1).max())
            # the living in their order first; where there are fewer, some that nobody looks at
            order = live.sort(dim=1, descending=True, stable=True)[1][:, :count]
            self._start, self._live = self._settled, order + self._settled
            columns = self._live.repeat_interleave(self.beam, 0)  # (N, count)
            self.used = self._start + count
            self._paths[:, self._start : self.used] = self._paths.gather(1, columns)
            if self._positions is not None:
                moved = self._positions.gather(1, self._live)
                self._positions[:, self._start : self.used] = moved
            # Of the newest, many are going to die: look at them once more the next time.
            self._settled = max(self._settled, self.used - _STEPS_OF_DOUBT * self.beam)
        ahead = (self.max_length - self.length) * self.beam  # all that can still come
        if self.room - self.used < min(_STEPS_OF_DOUBT * self.beam, ahead):
            wanted = max(self.room * 3 // 2, self.used + _STEPS_OF_ROOM * self.beam)
            self.room = min(wanted, self.used + ahead)
            self._paths = self._with_room(self._paths[:, None, :, None]).flatten(1)
            if self._positions is not None:
                self._positions = self._with_room(self._positions[:, None, :, None]).flatten(1)
        self.generation += 1

    def follow(self, buffer: Tensor) -> Tensor:
        """Keys or values (B, H, R, Dh) of the generation before, where they are now."""
        if self._live is not None:
            num_sentences, num_heads, room, width = buffer.shape
            # whole rows by their numbers: ten times as fast as `gather` by element
            firsts = torch.arange(num_sentences * num_heads, device=buffer.device) * room
            rows = firsts.view(num_sentences, num_heads, 1) + self._live[:, None]  # (B, H, count)
            chosen = buffer.view(-1, width).index_select(0, rows.flatten())
            end = self._start + rows.size(2)
            buffer[:, :, self._start : end] = chosen.view(*rows.shape, width)
        return buffer if buffer.size(2) == self.room else self._with_room(buffer)

    def _with_room(self, buffer: Tensor) -> Tensor:
        """A copy of (B, H, R, Dh) with more columns."""
        num_sentences, num_heads, room, width = buffer.shape
        larger = buffer.new_empty(num_sentences, num_heads, self.room, width)
        larger[:, :, :room] = buffer
        return larger

    def reorder(self, rows: Tensor) -> None:
        """Hypothesis n continues what hypothesis rows[n] of the same sentence was."""
        if self.beam > 1 and not is_identity(rows, self.num_rows):
            used = self._paths[:, : self.used]
            used.copy_(used.index_select(0, rows))

    def keep_sentences(self, kept: Kept) -> None:
        """Keep some of the sentences."""
        self._newest = self._newest[: kept.size * self.beam]  # all sentences have the same
        self._paths = kept.apply(self._paths.view(-1, self.beam, self.room)).flatten(0, 1)
        if self._positions is not None:
            self._positions = kept.apply(self._positions)
        self.mask = None


class KeyValueBuffer:
    """Keys and values of one self-attention call, for all hypotheses."""

    def __init__(self, paths: BeamPaths) -> None:
        self._paths = paths
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._generation = 0

    @property
    def length(self) -> int:
        """Position of the token that is being decoded."""
        return self._paths.length - 1

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, K, C), added to scores; None when everything may be seen."""
        return self._paths.mask

    @property
    def key_positions(self) -> Tensor:
        """(B, C) int64 positions of the keys, see `BeamPaths.key_positions`."""
        return self._paths.key_positions

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values (B, H, K, Dh); return all of them (B, H, C, Dh)."""
        paths = self._paths
        if self._key is None or self._value is None:
            shape = (*key.shape[:2], paths.room, key.size(-1))
            self._key, self._value = key.new_empty(shape), value.new_empty(shape)
        elif self._generation != paths.generation:
            self._key, self._value = paths.follow(self._key), paths.follow(self._value)
        self._generation = paths.generation
        start = paths.used - paths.beam
        self._key[:, :, start : paths.used] = key
        self._value[:, :, start : paths.used] = value
        return self._key[:, :, : paths.used], self._value[:, :, : paths.used]

    def reorder(self, rows: Tensor) -> None:
        """Nothing to do: keys stay where they are, and `BeamPaths` says whose they are."""

    def keep_sentences(self, kept: Kept) -> None:
        """Keep some of the sentences."""
        if self._key is not None and self._value is not None:
            self._key, self._value = kept.apply(self._key), kept.apply(self._value)
