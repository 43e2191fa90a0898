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

from torch import Tensor, nn

from ds_seq.modules import native
from ds_seq.modules.rms_norm import RmsNorm

PANEL = 64  # the enumerations and structures of native_step.h
MOST_ROWS = 192
_KINDS = {"self_attention": 0, "cross_attention": 1, "feed_forward": 2, "source_attention": 3}
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


class StepBody(NamedTuple):
    """A sub-layer and its residual."""

    kind: Literal["self_attention", "cross_attention", "feed_forward", "source_attention"]
    """`self_attention` is that of a decoder, to earlier tokens, `source_attention` an encoder's."""
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
        self.address = ctypes.byref(self.table)
        self.row_size = self.width + widest + attended
        """Numbers per row of the room that the kernels work in."""
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
