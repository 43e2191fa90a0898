"""Optimizer parameter groups: with and without weight decay, and by factors of learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import nn

from ds_seq.weights.selection import Selection

LR_FACTOR = "lr_factor"
"""Key of a group: what its learning rate is multiplied by; 1 without it."""
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


def with_lr_factors(
    groups: list[dict[str, Any]], model: nn.Module, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return optimizer groups divided by the factors of their parameters' learning rates.

    Decoupled weight decay, whose step is a multiple of the learning rate, has the factor, too.

    Args:
        groups: from `parameter_groups`.
        model: the model that has the parameters.
        factors: factor by part, see `ds_seq.weights.selection`; a parameter in several parts has
            the product. Empty: the groups stay as they are.
    """
    if not factors:
        return groups
    parts = {entry: Selection([entry]) for entry in factors}
    factor_of = {
        id(parameter): prod(factors[entry] for entry, part in parts.items() if part.has(name))
        for name, parameter in model.named_parameters()
    }
    divided = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factor_of[id(parameter)], []).append(parameter)
        divided += [
            {**group, LR_FACTOR: factor, "params": parameters}
            for factor, parameters in by_factor.items()
        ]
    return divided
