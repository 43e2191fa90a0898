"""The activations of feed-forwards and experts, in one table.

An activation is applied between the two maps of a feed-forward. A gated one reads two inner
vectors, gate and value, which the first map returns side by side: all gates, then all values.
`ds_seq.names` lists the gated ones, because the config counts parameters without torch.

Shapes: R rows, F inner width, H = F, or 2F for a gated activation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.names import GATED_ACTIVATIONS, ActivationName


class Activation(NamedTuple):
    """An activation and its gradient."""

    is_gated: bool
    """Whether it reads gate and value instead of one vector."""
    fused: str
    """What the kernel of the first map can apply (`ds_seq.modules.linear`): the whole activation,
    `relu`, or nothing, `none`."""
    rest: Callable[[Tensor], Tensor] | None
    """What remains to be applied after a first map that has applied `fused`, or None."""
    function: Callable[[Tensor], Tensor]
    """The whole activation, (..., H) -> (..., F)."""
    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the result (R, F), output of the first map with `fused` applied (R, H)) ->
    gradient of the first map's output (R, H); may overwrite its first argument."""

    @property
    def num_parts(self) -> int:
        """Number of maps D -> F in the first map: 2 with a gate, else 1."""
        return 2 if self.is_gated else 1


def _plain(
    name: ActivationName,
    function: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, Tensor], Tensor],
) -> Activation:
    """Make an activation of one vector that no kernel of the first map can apply."""
    return Activation(name in GATED_ACTIVATIONS, "none", function, function, backward)


def _gated(
    name: ActivationName,
    gating: Callable[[Tensor], Tensor],
    gating_backward: Callable[[Tensor, Tensor], Tensor],
) -> Activation:
    """Make an activation `gating(gate) * value` (Shazeer, 2020).

    Args:
        name: name of the activation.
        gating: function of the gate that returns a new tensor.
        gating_backward: (gradient of its result, gate) -> gradient of the gate.
    """

    def function(inner: Tensor) -> Tensor:
        gate, value = inner.chunk(2, dim=-1)
        scale = gating(gate)
        # in place if autograd does not need the factor: saves one tensor of this size
        return scale * value if scale.requires_grad else scale.mul_(value)

    def backward(grad: Tensor, inner: Tensor) -> Tensor:
        gate, value = inner.chunk(2, dim=-1)
        return torch.cat([gating_backward(grad * value, gate), grad.mul_(gating(gate))], dim=-1)

    return _plain(name, function, backward)


def _relu_backward(grad: Tensor, inner: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, inner, 0, grad_input=grad)
    return result


def _gelu_backward(grad: Tensor, inner: Tensor, approximate: str = "none") -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward(grad, inner, approximate=approximate)
    return result


def _silu_backward(grad: Tensor, inner: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.silu_backward(grad, inner)
    return result


def _sigmoid_backward(grad: Tensor, inner: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.sigmoid_backward(grad, inner.sigmoid())
    return result


_gelu_tanh = partial(F.gelu, approximate="tanh")
_gelu_tanh_backward = partial(_gelu_backward, approximate="tanh")

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("relu" in GATED_ACTIVATIONS, "relu", None, F.relu, _relu_backward),
    # So et al. (2021); the kernel of the first map has applied relu
    "relu_squared": Activation(
        "relu_squared" in GATED_ACTIVATIONS,
        "relu",
        torch.square,
        lambda inner: F.relu(inner).square(),
        lambda grad, kept: grad.mul_(kept).mul_(2.0),
    ),
    "gelu": _plain("gelu", F.gelu, _gelu_backward),
    "gelu_tanh": _plain("gelu_tanh", _gelu_tanh, _gelu_tanh_backward),
    "silu": _plain("silu", F.silu, _silu_backward),
    "glu": _gated("glu", torch.sigmoid, _sigmoid_backward),
    # its gradient reads the gate itself, which relu would change in place
    "reglu": _gated("reglu", F.relu, lambda grad, gate: grad.mul_(gate > 0)),
    "geglu": _gated("geglu", F.gelu, _gelu_backward),
    "geglu_tanh": _gated("geglu_tanh", _gelu_tanh, _gelu_tanh_backward),
    "swiglu": _gated("swiglu", F.silu, _silu_backward),
}
"""Activations by their name in an experiment file."""


def find_activation(name: str) -> Activation:
    """Return the activation of this name.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name}")
    return ACTIVATIONS[name]
