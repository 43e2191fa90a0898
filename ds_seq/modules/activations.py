"""The activations of feed-forwards and experts, in one table.

An activation is applied between the two maps of a feed-forward. A gated one reads two inner
vectors, gate and value, which the first map returns side by side: all gates, then all values.
`ds_seq.names` lists the gated ones, because the config counts parameters without torch.

Shapes: R rows, F inner width, H = F, or 2F for a gated activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_seq.names import GATED_ACTIVATIONS


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


def _relu_backward(grad: Tensor, inner: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, inner, 0, grad_input=grad)
    return result


def _gelu_backward(grad: Tensor, inner: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward(grad, inner)
    return result


def _swiglu(inner: Tensor) -> Tensor:
    gate, value = inner.chunk(2, dim=-1)
    scale = F.silu(gate)
    # in place if autograd does not need the factor: saves one tensor of this size
    return scale * value if scale.requires_grad else scale.mul_(value)


def _swiglu_backward(grad: Tensor, inner: Tensor) -> Tensor:
    gate, value = inner.chunk(2, dim=-1)
    grad_gate = torch.ops.aten.silu_backward(grad * value, gate)
    return torch.cat([grad_gate, grad.mul_(F.silu(gate))], dim=-1)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("relu" in GATED_ACTIVATIONS, "relu", None, F.relu, _relu_backward),
    "gelu": Activation("gelu" in GATED_ACTIVATIONS, "none", F.gelu, F.gelu, _gelu_backward),
    "swiglu": Activation("swiglu" in GATED_ACTIVATIONS, "none", _swiglu, _swiglu, _swiglu_backward),
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
