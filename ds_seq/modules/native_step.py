"""A decoder's step as one call into C (`native_step.c`): tables of pointers, and a batch's state.

The operators of a step compute for microseconds each, so with few rows the calls are most of the
time. Here weights are packed and their addresses collected once per model, and a step of all layers
is one call. It runs on one thread, and releases Python's lock. What is computed for a hypothesis
does not depend on the others, to the last digit.

Shapes: B sentences, A of them unfinished, K hypotheses of a sentence, N = A K, S source tokens,
R slots of a sentence, L steps, I inputs, O outputs, D width of the model, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.modules import native
from ds_seq.modules.kv_cache import is_identity
from ds_seq.modules.rms_norm import RmsNorm

PANEL = 64  # the enumerations and structures of native_step.h
_MOST_ROWS = 192
_KINDS = {"self_attention": 0, "cross_attention": 1, "feed_forward": 2}
ACTIVATIONS = {
    "relu": (1, False),
    "relu_squared": (2, False),
    "gelu": (3, False),
    "gelu_tanh": (4, False),
    "silu": (5, False),
    "glu": (6, True),
    "reglu": (1, True),
    "geglu": (3, True),
    "geglu_tanh": (4, True),
    "swiglu": (5, True),
}
"""Activations of feed-forwards: number, whether gated."""

_INITIAL_STEPS = 16
"""Steps for which there are slots at first; see `ds_seq.modules.kv_cache`."""

_NO_ROOM, _NO_TOKEN = 1, 2  # what ds_seq_step returns

_NUMBER, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


class _Map(ctypes.Structure):
    _fields_ = (("weight", _ADDRESS), ("bias", _ADDRESS), ("inputs", _NUMBER), ("outputs", _NUMBER))


class _Norm(ctypes.Structure):
    _fields_ = (
        ("scale", _ADDRESS),
        ("shift", _ADDRESS),
        ("kind", _NUMBER),
        ("epsilon", ctypes.c_double),
    )


class _Body(ctypes.Structure):
    _fields_ = (
        *((name, _NUMBER) for name in ("kind", "pre_norm", "activation", "is_gated")),
        *((name, _NUMBER) for name in ("num_heads", "num_shared", "head_width")),
        ("carry", ctypes.c_double),
        ("norm", _Norm),
        ("first", _Map),
        ("second", _Map),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("table", _ADDRESS),
        ("scale", ctypes.c_double),
        *((name, _NUMBER) for name in ("width", "vocab_size", "num_bodies")),
        ("embedding_norm", _Norm),
        ("final_norm", _Norm),
        ("bodies", _ADDRESS),
    )


class _State(ctypes.Structure):
    _fields_ = (
        *((name, _ADDRESS) for name in ("memory", "positions", "places", "lengths", "paths")),
        *((name, _ADDRESS) for name in ("unused", "num_unused", "counting", "scratch")),
        *((name, _NUMBER) for name in ("beam", "most_steps", "room", "source_room", "length")),
    )


class StepBody(NamedTuple):
    """A sub-layer of a decoder and its residual."""

    kind: Literal["self_attention", "cross_attention", "feed_forward"]
    pre_norm: bool
    """Whether the norm is that of its input; else that of the sum."""
    norm: nn.Module
    """`torch.nn.LayerNorm` or `RmsNorm`."""
    carry: float
    """Factor of the input in the sum."""
    first: nn.Linear
    """Queries, and keys and values of self-attention; or the first map of a feed-forward."""
    second: nn.Linear
    """The last map."""
    activation: tuple[int, bool]
    """A value of `ACTIVATIONS`; of a feed-forward."""
    heads: tuple[int, int, int]
    """Heads, heads of keys and values, width of a head; of attention."""


class NativeMap:
    """A linear map, packed in panels of outputs; later changes of the weight have no effect.

    Args:
        weight: (O, I).
        bias: (O,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, inputs = weight.shape
        num_panels = -(-self.outputs // PANEL)
        panels = weight.new_zeros(num_panels * PANEL, inputs)
        panels[: self.outputs] = weight.detach()
        panels = panels.view(num_panels, PANEL, inputs).transpose(1, 2).contiguous()
        biases = weight.new_zeros(num_panels * PANEL)
        if bias is not None:
            biases[: self.outputs] = bias.detach()
        self._kept = panels, biases
        self.table = _Map(panels.data_ptr(), biases.data_ptr(), inputs, self.outputs)

    def __call__(self, x: Tensor) -> Tensor:
        """Map rows x (N, I), contiguous float32, to (N, O)."""
        library = native.library()
        assert library is not None, "made with the kernels"
        y = x.new_empty(len(x), self.outputs)
        library.ds_seq_map_rows(ctypes.byref(self.table), x.data_ptr(), len(x), y.data_ptr())
        return y


class NativeDecoder:
    """All layers of a decoder, packed; see `serves` for what they may consist of.

    Args:
        table: embeddings (V, D).
        scale: their factor.
        bodies: sub-layers in the order of the calls; a module may occur several times.
        embedding_norm: norm of the embedded tokens with their positions, or None.
        final_norm: norm of the output, or None.
    """

    def __init__(
        self,
        table: Tensor,
        scale: float,
        bodies: Sequence[StepBody],
        embedding_norm: nn.Module | None,
        final_norm: nn.Module | None,
    ) -> None:
        self._kept: list[Tensor] = [table]
        self._maps: dict[int, NativeMap] = {}
        self.bodies = [*bodies]
        self.width = table.size(1)
        entries = (_Body * len(bodies))(*map(self._entry, bodies))
        self._entries = entries
        self.table = _Decoder(
            table.data_ptr(),
            scale,
            self.width,
            len(table),
            len(bodies),
            self._norm(embedding_norm),
            self._norm(final_norm),
            ctypes.addressof(entries),
        )
        widest = max(body.first.out_features for body in bodies)
        attended = max(body.second.in_features for body in bodies)
        self.scratch_size = _MOST_ROWS * (self.width + widest + attended)
        self.num_weights = sum(each.table.inputs * each.outputs for each in self._maps.values())

    def _entry(self, body: StepBody) -> _Body:
        return _Body(
            _KINDS[body.kind],
            body.pre_norm,
            *body.activation,
            *body.heads,
            body.carry,
            self._norm(body.norm),
            self._map(body.first),
            self._map(body.second),
        )

    def _map(self, module: nn.Linear) -> _Map:
        if id(module) not in self._maps:
            self._maps[id(module)] = NativeMap(module.weight, module.bias)
        return self._maps[id(module)].table

    def _norm(self, norm: nn.Module | None) -> _Norm:
        if norm is None:
            return _Norm()
        assert isinstance(norm, nn.LayerNorm | RmsNorm)
        scale: Tensor = norm.weight
        shift: Tensor | None = norm.bias if isinstance(norm, nn.LayerNorm) else None
        self._kept += [scale] if shift is None else [scale, shift]
        kind = 1 if isinstance(norm, nn.LayerNorm) else 2
        bias = None if shift is None else shift.data_ptr()
        return _Norm(scale.data_ptr(), bias, kind, norm.eps)


class NativeSearches:
    """The state of a batch of searches: keys and values, and whose they are.

    A sentence keeps its place in the tensors as long as it is searched, and a key the slot into
    which it was written. A hypothesis is a path of slots; a slot on no path is written anew.

    Args:
        decoder: the decoder.
        sources: keys and values (B, S, 2 H' Dh) of each cross-attention, in the order of the
            bodies.
        lengths: tokens of each source, (B,).
        positions: vectors (L, D) to be added to the embedded tokens, or None.
        beam: number of hypotheses per sentence, K.
        max_length: largest number of steps.
    """

    def __init__(
        self,
        decoder: NativeDecoder,
        sources: Sequence[Tensor],
        lengths: Tensor,
        positions: Tensor | None,
        beam: int,
        max_length: int,
    ) -> None:
        self._decoder = decoder
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
        self._positions = None if positions is None else positions.contiguous()
        self._paths = torch.empty(num_sentences * beam, max_length, dtype=integers)
        self._unused = torch.empty(num_sentences, self._room, dtype=integers)
        self._num_unused = torch.zeros(num_sentences, dtype=integers)
        self._counting = torch.arange(self._source_room, dtype=integers)
        scores = max(max_length, self._source_room) + native.LANES
        # paths are reordered in it, too
        self._scratch = torch.empty(max(decoder.scratch_size + scores, beam * max_length))
        self._table: _State | None = None
        self._addresses: ctypes.Array[ctypes.c_void_p] | None = None

    @property
    def num_sentences(self) -> int:
        """Number of unfinished sentences, A."""
        return len(self._places)

    def step(self, tokens: Tensor, width: int) -> Tensor:
        """Decode the newest tokens.

        Args:
            tokens: (A width,) int64.
            width: hypotheses of a sentence: K, or in the first step 1, which stands for all.

        Returns:
            (A width, D).

        Raises:
            ValueError: there are no more positions.
            IndexError: a token is not in the vocabulary.
        """
        if self.length == self.max_length:
            raise ValueError(f"the cache was made for {self.max_length} positions")
        library = native.library()
        assert library is not None, "made with the kernels"
        tokens = tokens.contiguous()
        out = torch.empty(len(tokens), self._decoder.width)
        while True:
            outcome = library.ds_seq_step(
                ctypes.byref(self._decoder.table),
                ctypes.byref(self._bound()),
                tokens.data_ptr(),
                self.num_sentences,
                width,
                out.data_ptr(),
            )
            if outcome != _NO_ROOM:
                break
            self._grow()
        if outcome == _NO_TOKEN:
            raise IndexError(f"tokens outside the vocabulary: {tokens.tolist()}")
        self.length += 1
        return out

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

    def _grow(self) -> None:
        """Add slots to every sentence."""
        before, self._room = self._room, self._room * 3 // 2 + self.beam
        for i, body in enumerate(self._decoder.bodies):
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
