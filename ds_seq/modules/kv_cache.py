"""A key-value cache for beam search that is not copied when the beam is reordered.

A hypothesis of beam search is a path through a tree: after reordering, its past lies in other rows.
Instead of copying keys and values into the new order, every key stays where it was written, all
hypotheses of a sentence attend to all keys of that sentence, and a small mask marks the keys on the
path of each hypothesis. Reordering changes only this mask.

The hypotheses of a sentence soon share one ancestor, so most keys are on no path any more. Whenever
the buffer is full, the newer ones among these are dropped. A sentence then holds little more than
one key per position, where K separate rows would hold K.

Shapes: B sentences, K beam width, N = B K hypotheses (row n belongs to sentence n // K), H heads,
Dh width of a head, S source tokens, C columns in use (keys of all hypotheses of a sentence), R room
(capacity in columns).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_INITIAL_STEPS = 16
"""Number of steps that fit into the initial buffer."""
_UNSETTLED_STEPS = 8
"""Keys of this many newest steps are pruned again later; there is room for this many more steps."""


class KeptSentences(NamedTuple):
    """The `size` sentences that stay in a batch; those at `origins` move to `places`."""

    size: int
    places: Tensor
    origins: Tensor

    @classmethod
    def of(cls, kept: Tensor) -> KeptSentences:
        """Make the moves for the indices (B',) of the sentences that become 0 .. B' - 1."""
        places = (kept != torch.arange(len(kept), device=kept.device)).nonzero().squeeze(1)
        return cls(len(kept), places, kept.index_select(0, places))

    def apply(self, rows: Tensor) -> Tensor:
        """Return these sentences' rows (B', ...) of `rows` (B, ...), in the same memory."""
        if len(self.places):
            rows.index_copy_(0, self.places, rows.index_select(0, self.origins))
        return rows[: self.size]


def is_identity(rows: Tensor, count: int) -> bool:
    """Return whether `rows` is 0 .. count - 1; always False on a GPU.

    There, the check would need a synchronization, which costs more than the copy it may save.
    """
    if rows.device.type != "cpu" or len(rows) != count:
        return False
    return torch.equal(rows, torch.arange(count))


class BeamPaths:
    """Which stored keys belong to which hypothesis; shared by all layers.

    Where no body stores keys (`keep_keys`), it only counts steps.

    Args:
        num_sentences: number of sentences, B.
        beam: beam width, K.
        max_length: largest number of positions; bounds the room.
        like: tensor of the mask's dtype and device.
    """

    def __init__(self, num_sentences: int, beam: int, max_length: int, like: Tensor) -> None:
        self.beam = beam
        self.max_length = max_length
        self.length = 0
        self.used = 0
        self.room = min(_INITIAL_STEPS, max_length) * beam
        self.mask: Tensor | None = None
        self.generation = 0
        """How often keys have moved; a buffer of an earlier generation must call `follow`."""
        self._keeps_keys = False
        self._positions: Tensor | None = None  # (B, R) int64, if tracked
        self._live: Tensor | None = None  # (B, count) old columns of those from _start on
        self._start = 0
        self._settled = 0  # columns before this one are no longer pruned
        blocked = like.new_full((beam, beam), -math.inf).fill_diagonal_(0.0)
        self._newest = blocked.repeat(num_sentences, 1)  # (N, K): each attends to its own key only
        self._paths = self._newest.new_empty(num_sentences * beam, self.room)

    @property
    def num_rows(self) -> int:
        """Number of hypotheses, N."""
        return len(self._newest)

    def keep_keys(self) -> None:
        """Track keys; to be called before the first step by whoever stores them."""
        self._keeps_keys = True

    def track_positions(self) -> None:
        """Track the positions of keys, too; to be called before the first step."""
        if self.length:
            raise ValueError("call track_positions before the first step")
        self.keep_keys()
        num_sentences = self.num_rows // self.beam
        zeros = torch.zeros(num_sentences, self.room, dtype=torch.int64)
        self._positions = zeros.to(self._paths.device)

    @property
    def key_positions(self) -> Tensor:
        """(B, C) int64: the position at which the key in each column was written.

        Columns that `mask` hides from all hypotheses may hold any earlier position.

        Raises:
            ValueError: `track_positions` has not been called.
        """
        if self._positions is None:
            raise ValueError("call track_positions before the first step")
        return self._positions[:, : self.used]

    def advance(self, width: int | None = None) -> None:
        """Open the next position, at which every hypothesis attends to the key it writes.

        Args:
            width: keys per sentence: K, or 1 at the first position, which all hypotheses share.
                None: K.

        Raises:
            ValueError: there are no more positions, or hypotheses share a later one.
        """
        if self.length == self.max_length:
            raise ValueError(f"the cache was made for {self.max_length} positions")
        width = self.beam if width is None else width
        if width != self.beam and (self.length or width != 1):
            raise ValueError(f"{width} keys at position {self.length} for a beam of {self.beam}")
        self.length += 1
        if self._keeps_keys:
            self._add_keys(width)

    def _add_keys(self, width: int) -> None:
        """Add the columns of the newest keys."""
        if self.used + width > self.room:
            self._make_room()
        start = self.used
        self.used += width
        self._paths[:, start : self.used] = self._newest if width == self.beam else 0.0
        if self._positions is not None:
            self._positions[:, start : self.used] = self.length - 1
        if width > 1:  # a single hypothesis attends to all keys: no mask
            rows = self._paths[:, : self.used]
            self.mask = rows.view(-1, 1, self.beam, self.used)  # (B, 1, K, C)

    def _make_room(self) -> None:
        """Drop keys that are on no path; add room if that frees too little."""
        used = self.used
        self._live = None
        if self.beam > 1:
            recent = self._paths[:, self._settled : used].view(-1, self.beam, used - self._settled)
            live = (recent == 0).any(1)  # (B, C - settled)
            count = int(live.sum(1).max())
            # live columns first, in order; sentences with fewer of them are filled up with others
            order = live.sort(dim=1, descending=True, stable=True)[1][:, :count]
            self._start, self._live = self._settled, order + self._settled
            columns = self._live.repeat_interleave(self.beam, 0)  # (N, count)
            self.used = self._start + count
            self._paths[:, self._start : self.used] = self._paths.gather(1, columns)
            if self._positions is not None:
                moved = self._positions.gather(1, self._live)
                self._positions[:, self._start : self.used] = moved
            # Many of the newest keys will leave all paths: check them again next time.
            self._settled = max(self._settled, self.used - _UNSETTLED_STEPS * self.beam)
        ahead = (
            self.max_length - self.length + 1
        ) * self.beam  # all columns that may still be needed
        if self.room - self.used < min(_UNSETTLED_STEPS * self.beam, ahead):
            larger = max(self.room * 3 // 2, self.used + _INITIAL_STEPS * self.beam)
            self.room = min(larger, self.used + ahead)
            self._paths = self._with_room(self._paths[:, None, :, None]).flatten(1)
            if self._positions is not None:
                self._positions = self._with_room(self._positions[:, None, :, None]).flatten(1)
        self.generation += 1

    def follow(self, buffer: Tensor) -> Tensor:
        """Move keys or values (B, H, R, Dh) of the previous generation to their new columns."""
        if self._live is not None:
            num_sentences, num_heads, room, width = buffer.shape
            # selecting whole rows is ten times as fast as an element-wise `gather`
            firsts = torch.arange(num_sentences * num_heads, device=buffer.device) * room
            rows = firsts.view(num_sentences, num_heads, 1) + self._live[:, None]  # (B, H, count)
            chosen = buffer.view(-1, width).index_select(0, rows.flatten())
            end = self._start + rows.size(2)
            buffer[:, :, self._start : end] = chosen.view(*rows.shape, width)
        return buffer if buffer.size(2) == self.room else self._with_room(buffer)

    def _with_room(self, buffer: Tensor) -> Tensor:
        """Copy a buffer (B, H, R, Dh) into a larger one."""
        num_sentences, num_heads, room, width = buffer.shape
        larger = buffer.new_empty(num_sentences, num_heads, self.room, width)
        larger[:, :, :room] = buffer
        return larger

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]` of the same sentence."""
        if self.beam > 1 and not is_identity(rows, self.num_rows):
            used = self._paths[:, : self.used]
            used.copy_(used.index_select(0, rows))

    def keep_sentences(self, kept: KeptSentences) -> None:
        """Keep only some of the sentences."""
        self._newest = self._newest[: kept.size * self.beam]  # the same for all sentences
        self._paths = kept.apply(self._paths.view(-1, self.beam, self.room)).flatten(0, 1)
        if self._positions is not None:
            self._positions = kept.apply(self._positions)
        self.mask = None


class KeyValueBuffer:
    """Keys and values of one self-attention call, for all hypotheses."""

    def __init__(self, paths: BeamPaths) -> None:
        paths.keep_keys()
        self._paths = paths
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._generation = 0

    @property
    def length(self) -> int:
        """Position of the token being decoded."""
        return self._paths.length - 1

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, K, C), added to scores; None if there is nothing to mask."""
        return self._paths.mask

    @property
    def key_positions(self) -> Tensor:
        """(B, C) int64 positions of the keys, see `BeamPaths.key_positions`."""
        return self._paths.key_positions

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the newest keys and values (B, H, K or 1, Dh); return all (B, H, C, Dh)."""
        paths = self._paths
        if self._key is None or self._value is None:
            shape = (*key.shape[:2], paths.room, key.size(-1))
            self._key, self._value = key.new_empty(shape), value.new_empty(shape)
        elif self._generation != paths.generation:
            self._key, self._value = paths.follow(self._key), paths.follow(self._value)
        self._generation = paths.generation
        start = paths.used - key.size(2)
        self._key[:, :, start : paths.used] = key
        self._value[:, :, start : paths.used] = value
        return self._key[:, :, : paths.used], self._value[:, :, : paths.used]

    def reorder(self, rows: Tensor) -> None:
        """Do nothing: keys stay where they are, and `BeamPaths` tracks their hypotheses."""

    def keep_sentences(self, kept: KeptSentences) -> None:
        """Keep only some of the sentences."""
        if self._key is not None and self._value is not None:
            self._key, self._value = kept.apply(self._key), kept.apply(self._value)


class KeyValue(NamedTuple):
    """Keys and values that queries attend to, each (B, H', S, Dh); H' divides H."""

    key: Tensor
    value: Tensor


class SourcePast:
    """Keys and values (B, H, S, Dh) of the encoded source, stored once per sentence."""

    def __init__(self, memory: KeyValue) -> None:
        self.memory = memory

    def reorder(self, rows: Tensor) -> None:
        """Do nothing: hypotheses never leave their sentence."""

    def keep_sentences(self, kept: KeptSentences) -> None:
        """Keep only some of the sentences."""
        self.memory = KeyValue(*map(kept.apply, self.memory))
