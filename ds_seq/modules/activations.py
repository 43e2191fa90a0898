"""The activations of feed-forwards and experts: one table, for everybody who must know them.

An activation stands between the two maps of a feed-forward. A gated one reads two inner vectors,
gate and value, which the first map gives side by side: all gates, then all values. Which ones are
gated is said in `ds_seq.names`, because the config counts parameters without torch.

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
    """Whether it reads gate and value."""
    fused: str
    """What the kernel of the first map can apply by itself (`ds_seq.modules.linear`): the whole
    activation, `relu`, or nothing of it, `none`."""
    rest: Callable[[Tensor], Tensor] | None
    """What is left to do behind a first map that has applied `fused`; None: nothing."""
    function: Callable[[Tensor], Tensor]
    """The whole activation, (..., H) -> (..., F)."""
    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the result (R, F), what the first map gave with `fused` applied (R, H)) ->
    gradient of the first map's result (R, H); may overwrite the gradient."""

    @property
    def num_parts(self) -> int:
        """How many maps of D -> F the first map consists of: 2 with a gate, else 1."""
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
    # in place where autograd does not need the factor any more: one tensor of this size less
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
"""By the name that an experiment has for them."""


def find_activation(name: str) -> Activation:
    """The activation of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name}")
    return ACTIVATIONS[name]
