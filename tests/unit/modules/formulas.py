"""The activations of feed-forwards written out, to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0.0),
    "relu_squared": lambda x: x.clamp(min=0.0) ** 2,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x / (1.0 + torch.exp(-x)),
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": lambda x: 1.0 / (1.0 + torch.exp(-x)),
    "reglu": PLAIN["relu"],
    "geglu": _gelu,
    "geglu_tanh": _gelu_tanh,
    "swiglu": PLAIN["silu"],
}


def formula(name: str, inner: Tensor) -> Tensor:
    """Apply an activation to what the first map returned, gates before values."""
    if name in PLAIN:
        return PLAIN[name](inner)
    gate, value = inner.chunk(2, dim=-1)
    return GATES[name](gate) * value
