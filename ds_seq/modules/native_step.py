"""Stacks of layers that run as one call into C (`native_step.c`): packed weights and addresses.

The operators of a step compute for microseconds each, so with few rows the calls are most of the
time. Here weights are packed and their addresses collected once per model, and a step of all layers
is one call. It runs on one thread, and releases Python's lock. What is computed for a hypothesis
does not depend on the others, to the last digit.

Shapes: N rows, I inputs, O outputs, D width of the model, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.modules import native
from ds_seq.modules.rms_norm import RmsNorm

PANEL = 64  # the enumerations and structures of native_step.h
MOST_ROWS = 192
_KINDS = {
    "self_attention": 0,
    "cross_attention": 1,
    "feed_forward": 2,
    "source_attention": 3,
    "experts": 4,
}
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
        ("experts", _ADDRESS),
        ("top_k", _NUMBER),
        ("is_normalized", _NUMBER),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("table", _ADDRESS),
        ("scale", ctypes.c_double),
        *((name, _NUMBER) for name in ("width", "vocab_size", "num_bodies")),
        *((name, _NUMBER) for name in ("widest", "most_attended", "most_mixing")),
        ("embedding_norm", _Norm),
        ("final_norm", _Norm),
        ("bodies", _ADDRESS),
    )


class MapWeights(NamedTuple):
    """A linear map to be packed."""

    weight: Tensor
    """(O, I)."""
    bias: Tensor | None
    """(O,) or None."""


class StepExperts(NamedTuple):
    """Experts that a softmax router chooses."""

    maps: list[MapWeights]
    """Up and down of each expert."""
    top_k: int
    is_normalized: bool
    """Whether the weights of a row are divided by their sum."""


class StepBody(NamedTuple):
    """A sub-layer and its residual."""

    kind: Literal[
        "self_attention", "cross_attention", "feed_forward", "source_attention", "experts"
    ]
    """`self_attention` is that of a decoder, to earlier tokens, `source_attention` an encoder's."""
    pre_norm: bool
    """Whether the norm is that of its input; else that of the sum."""
    norm: nn.Module
    """`torch.nn.LayerNorm` or `RmsNorm`."""
    carry: float
    """Factor of the input in the sum."""
    first: MapWeights
    """Queries, and keys and values of self-attention; first map of a feed-forward; router."""
    second: MapWeights
    """The last map; of experts one of theirs."""
    activation: tuple[int, bool]
    """A value of `ACTIVATIONS`; of a feed-forward."""
    heads: tuple[int, int, int]
    """Heads, heads of keys and values, width of a head; of attention."""
    experts: StepExperts | None


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


class NativeStack:
    """All layers of an encoder or decoder, packed; `ds_seq.models.native_decoder` makes it.

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
        self._maps: dict[tuple[int, torch.Size], NativeMap] = {}
        self._tables: list[ctypes.Array[_Map]] = []
        self.bodies = [*bodies]
        self.width = table.size(1)
        sizes = [max(of_body) for of_body in zip(*map(_work_of, bodies), strict=True)]
        entries = (_Body * len(bodies))(*map(self._entry, bodies))
        self._entries = entries
        self.table = _Decoder(
            table.data_ptr(),
            scale,
            self.width,
            len(table),
            len(bodies),
            *sizes,
            self._norm(embedding_norm),
            self._norm(final_norm),
            ctypes.addressof(entries),
        )
        self.address = ctypes.byref(self.table)
        self.row_size = self.width + sum(sizes)
        """Numbers per row of the room that the kernels work in."""
        self.num_weights = sum(each.table.inputs * each.outputs for each in self._maps.values())

    def _entry(self, body: StepBody) -> _Body:
        experts = body.experts
        maps = [] if experts is None else [self._map(each) for each in experts.maps]
        table = (_Map * len(maps))(*maps)
        self._tables.append(table)
        return _Body(
            _KINDS[body.kind],
            body.pre_norm,
            *body.activation,
            *body.heads,
            body.carry,
            self._norm(body.norm),
            self._map(body.first),
            self._map(body.second),
            ctypes.addressof(table) if maps else None,
            *((0, False) if experts is None else experts[1:]),
        )

    def _map(self, weights: MapWeights) -> _Map:
        key = weights.weight.data_ptr(), weights.weight.shape
        if key not in self._maps:
            self._maps[key] = NativeMap(*weights)
        return self._maps[key].table

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


def _work_of(body: StepBody) -> tuple[int, int, int]:
    """Return the numbers per row that a body works in: of its first map, attention, experts."""
    wide, (width, narrow) = len(body.first.weight), body.second.weight.shape
    if body.experts is None:
        return wide, narrow, 0
    # rows of experts, their results and sums, logits, weights and experts of the choices
    mixing = 3 * width + wide + 3 * body.experts.top_k
    return len(body.experts.maps[0].weight), 0, mixing
