"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn

_BIASES = ("bias", "b1", "b2")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: matrices, which decay, and biases and norms, which do not.

    Decaying a norm's scale or a bias fights the very thing it is there for; experts' biases are
    matrices only because one tensor holds those of all experts, so they go by name.

    Args:
        model: frozen parameters are left out.
        weight_decay: of the first group.

    Returns:
        Groups as torch optimizers take them; empty ones are left out.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = name.rsplit(".", 1)[-1] in _BIASES
        (plain if is_bias or parameter.ndim < 2 else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
