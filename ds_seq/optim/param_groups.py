"""Optimizer parameter groups with and without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

_BIASES = ("bias", "b1", "b2")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two optimizer groups: matrices with weight decay, biases and norms without.

    Decay would counteract the purpose of a norm's scale or a bias. Experts' biases are recognized
    by name, because one tensor with two or more dimensions holds the biases of all experts.

    Args:
        model: model whose trainable parameters are grouped.
        weight_decay: weight decay of the first group.

    Returns:
        Non-empty groups for torch optimizers.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = name.rsplit(".", 1)[-1] in _BIASES or ".experts.inner_norm." in name
        (plain if is_plain or parameter.ndim < 2 else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
