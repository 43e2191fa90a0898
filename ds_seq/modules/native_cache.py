"""The state of a batch of searches whose steps are calls into C (`native_step.c`).

Shapes: B sentences, A of them unfinished, K hypotheses of a sentence, N = A K (row n belongs to
sentence n // K), S source tokens, R slots of a sentence, L steps, D width of the model,
H' heads of keys and values, Dh width of a head, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ds_seq.modules import native
from ds_seq.modules.kv_cache import is_identity
from ds_seq.modules.native_step import MOST_ROWS, NativeMap, NativeStack
from ds_seq.modules.positions import LearnedPositions

_INITIAL_STEPS = 16
"""Steps for which there are slots at first; see `ds_seq.modules.kv_cache`."""
NO_ROOM, _NO_TOKEN = -1, -2  # what ds_seq_step returns

_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _State(ctypes.Structure):
    _fields_ = (
        *((name, _ADDRESS) for name in ("memory", "positions", "places", "lengths", "paths")),
        *((name, _ADDRESS) for name in ("unused", "num_unused", "counting", "scratch")),
        *((name, _NUMBER) for name in ("beam", "most_steps", "room", "source_room", "length")),
    )


class NativeCache:
    """The state of a batch of searches, see `ds_seq.models.cache.DecoderCache`.

    A sentence keeps its place in the tensors as long as it is searched, and a key the slot into
    which it was written. A hypothesis is a path of slots; a slot on no path is written anew.

    Args:
        decoder: the decoder.
        sources: keys and values (B, S, 2 H' Dh) of each cross-attention, in the order of the
            bodies.
        lengths: tokens of each source, (B,).
        positions: module that adds positions to the embedded tokens, or None.
        beam: number of hypotheses per sentence, K.
        max_length: largest number of steps.
        scores: scores of the vocabulary by the model's `decode_step`; None: not by these kernels.

    Attributes:
        owner: the model whose `decode_step` takes this cache; set by it.
        length: number of decoded steps, L.
    """

    def __init__(
        self,
        decoder: NativeStack,
        sources: Sequence[Tensor],
        lengths: Tensor,
        positions: nn.Module | None,
        beam: int,
        max_length: int,
        scores: NativeMap | None,
    ) -> None:
        self.decoder, self.scores = decoder, scores
        self.owner: nn.Module | None = None
        self.beam, self.max_length, self.length = beam, max_length, 0
        num_sentences = len(lengths)
        self._room = beam * min(_INITIAL_STEPS, max_length)
        remaining = iter(sources)
        self._source_room = sources[0].size(1) if sources else 0
        self._memory: list[Tensor | None] = []
        for body in decoder.bodies:
            if body.kind == "self_attention":
                width = 2 * body.heads[1] * body.heads[2]
                self._memory.append(torch.empty(num_sentences, self._room, width))
            else:
                is_cross = body.kind == "cross_attention"
                self._memory.append(next(remaining).contiguous() if is_cross else None)
        integers = torch.int32
        self._places = torch.arange(num_sentences)
        self._lengths = lengths.to(integers)
        self._add_positions = positions
        num_rows = max_length
        if isinstance(positions, LearnedPositions):
            num_rows = min(max_length, positions.max_positions)
        self._positions = _rows_of(positions, decoder, num_rows)
        self._paths = torch.empty(num_sentences * beam, max_length, dtype=integers)
        self._unused = torch.empty(num_sentences, self._room, dtype=integers)
        self._num_unused = torch.zeros(num_sentences, dtype=integers)
        self._counting = torch.arange(self._source_room, dtype=integers)
        weights = max(max_length, self._source_room) + native.LANES  # of one query
        # paths are reordered in it, too
        rows = max(MOST_ROWS, beam) * decoder.row_size
        self._scratch = torch.empty(max(rows + weights, beam * (max_length + 1)))
        self._table: _State | None = None
        self._addresses: ctypes.Array[ctypes.c_void_p] | None = None

    @property
    def num_sentences(self) -> int:
        """Number of unfinished sentences, A."""
        return len(self._places)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token (N,) to each hypothesis; return its state (N, D), or (A, D) for all.

        A search starts with K equal hypotheses of each sentence, of which it is enough to decode
        one.

        Raises:
            ValueError: there are no more positions.
            IndexError: a token is not in the vocabulary.
        """
        width = self.beam
        if self.length == 0 and self.beam > 1:
            by_sentence = tokens.view(-1, self.beam)
            if bool((by_sentence == by_sentence[:, :1]).all()):
                tokens, width = by_sentence[:, 0], 1
        tokens = tokens.contiguous()
        out = torch.empty(len(tokens), self.decoder.width)

        def step(library: ctypes.CDLL, state: object) -> int:
            addresses = tokens.data_ptr(), self.num_sentences, width, out.data_ptr()
            outcome: int = library.ds_seq_step(self.decoder.address, state, *addresses)
            return outcome

        if self.advance(step) == _NO_TOKEN:
            raise IndexError(f"tokens outside the vocabulary: {tokens.tolist()}")
        return out

    def advance(self, call: Callable[[ctypes.CDLL, Any], int]) -> int:
        """Take one step.

        Args:
            call: called with the kernels and the address of the state, again after there was too
                little room.

        Returns:
            What the call has returned.

        Raises:
            ValueError: there are no more positions.
        """
        if self.length == self.max_length:
            raise ValueError(f"the cache was made for {self.max_length} positions")
        if isinstance(self._add_positions, LearnedPositions):
            self._add_positions.check(self.length, 1)
        library = native.library()
        assert library is not None, "made with the kernels"
        while (outcome := call(library, ctypes.byref(self._bound()))) == NO_ROOM:
            self._grow()
        if outcome != _NO_TOKEN:
            self.length += 1
        return outcome

    def of_each(self, logits: Tensor) -> Tensor:
        """Return logits (N, V), given those of all hypotheses or of one per sentence, (A, V)."""
        is_all = len(logits) == self.num_sentences * self.beam
        return logits if is_all else logits.repeat_interleave(self.beam, 0)

    def reorder(self, rows: Tensor) -> None:
        """Let hypothesis n continue hypothesis `rows[n]` (N,) of the same sentence."""
        library = native.library()
        assert library is not None, "made with the kernels"
        state = ctypes.byref(self._bound())
        library.ds_seq_reorder(state, rows.contiguous().data_ptr(), self.num_sentences)

    def keep_sentences(self, kept: Tensor) -> None:
        """Keep only the sentences `kept` (A',), which become 0 .. A' - 1."""
        if not is_identity(kept, self.num_sentences):
            self._places = self._places.index_select(0, kept)
            self._table = None

    def keep_first(self, count: int) -> None:
        """Keep the first sentences after `advance` has reordered them."""
        self._places = self._places[:count]

    def _grow(self) -> None:
        """Add slots to every sentence."""
        before, self._room = self._room, self._room * 3 // 2 + self.beam
        for i, body in enumerate(self.decoder.bodies):
            memory = self._memory[i]
            if body.kind == "self_attention" and memory is not None:
                larger = memory.new_empty(len(memory), self._room, memory.size(2))
                larger[:, :before] = memory
                self._memory[i] = larger
        self._unused = self._unused.new_empty(len(self._unused), self._room)
        self._num_unused.zero_()
        self._table = None

    def _bound(self) -> _State:
        """Return the table of addresses, a new one after tensors have changed."""
        if self._table is None:
            addresses = [None if x is None else x.data_ptr() for x in self._memory]
            self._addresses = (_ADDRESS * len(addresses))(*addresses)
            tensors = self._positions, self._places, self._lengths, self._paths, self._unused
            others = self._num_unused, self._counting, self._scratch
            self._table = _State(
                ctypes.addressof(self._addresses),
                *(None if x is None else x.data_ptr() for x in (*tensors, *others)),
                *(self.beam, self._paths.size(1), self._room, self._source_room, self.length),
            )
        return self._table


def encode(
    encoder: NativeStack, positions: nn.Module | None, tokens: Tensor, lengths: Tensor
) -> Tensor:
    """Encode sources; a sentence's states do not depend on the others, to the last digit.

    Args:
        encoder: the encoder.
        positions: module that adds positions to the embedded tokens, or None.
        tokens: (B, S) int64.
        lengths: number of real tokens of each source, (B,).

    Returns:
        Their states (B, S, D), zero at padding.

    Raises:
        IndexError: a token is not in the vocabulary.
    """
    library = native.library()
    assert library is not None, "made with the kernels"
    num_sentences, room = tokens.shape
    rows = max(room, MOST_ROWS) * (encoder.width + encoder.row_size)
    kept = (
        torch.arange(num_sentences),
        lengths.to(torch.int32),
        torch.arange(room, dtype=torch.int32),
        torch.empty(rows + room + native.LANES),
        tokens.contiguous(),
        torch.empty(num_sentences, room, encoder.width),
    )
    places, sizes, counting, scratch, ids, out = (x.data_ptr() for x in kept)
    added = _rows_of(positions, encoder, room)
    state = _State(
        positions=None if added is None else added.data_ptr(),
        places=places,
        lengths=sizes,
        counting=counting,
        scratch=scratch,
        source_room=room,
    )
    if library.ds_seq_encode(encoder.address, ctypes.byref(state), ids, num_sentences, out):
        raise IndexError(f"tokens outside the vocabulary: {tokens.tolist()}")
    return kept[-1]


def _rows_of(positions: nn.Module | None, stack: NativeStack, length: int) -> Tensor | None:
    """Return the rows (L, D) that a module adds to embedded tokens."""
    if positions is None:
        return None
    nothing = torch.zeros(1, length, stack.width)
    return cast(Tensor, positions(nothing, 0, length))[0].contiguous()
