"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ds_seq.config.base import ExternalConfig
from ds_seq.config.optim import (
    AdafactorConfig,
    AdamConfig,
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    PolynomialConfig,
    SgdConfig,
    WarmupStableDecayConfig,
)
from ds_seq.errors import UserError
from ds_seq.optim import schedulers
from ds_seq.optim.schedulers import Schedule
from ds_seq.plugins import find_plugin

__all__ = [
    "OPTIMIZERS",
    "SCHEDULERS",
    "Schedule",
    "build_optimizer",
    "build_scheduler",
    "learning_rate",
    "lr_factors",
    "weight_decay",
]

Groups = list[dict[str, Any]]


def _adam(config: AdamConfig, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _adamw(config: AdamConfig, groups: Groups) -> torch.optim.Optimizer:
    # torch's fused kernel updates a tensor in one pass on GPUs and, vectorized, on CPUs. It also
    # serves ZeRO offload, so nothing needs to be compiled at the first start.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _adafactor(config: AdafactorConfig, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(
        groups, lr=config.lr, beta2_decay=config.beta2_decay, d=config.clip_threshold
    )


def _sgd(config: SgdConfig, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


OPTIMIZERS: dict[str, Callable[[Any, Groups], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
}


def build_optimizer(config: Any, groups: Groups) -> torch.optim.Optimizer:
    """Build the optimizer named by `config.name` for `groups` (see `param_groups`)."""
    make = find_plugin("optimizer", config.name, OPTIMIZERS)
    if isinstance(config, ExternalConfig):
        return make(groups, **config.options)  # type: ignore[arg-type, call-arg]
    return make(config, groups)


def learning_rate(config: Any) -> float:
    """Return the peak learning rate of an optimizer section.

    Raises:
        UserError: the options of an external optimizer have no `lr`.
    """
    if not isinstance(config, ExternalConfig):
        return float(config.lr)
    if "lr" not in config.options:
        raise UserError("optimizer.options.lr: missing; set the learning rate for the schedule")
    return float(config.options["lr"])


def weight_decay(config: Any) -> float:
    """Return the weight decay of an optimizer section; 0 for an external one without."""
    if isinstance(config, ExternalConfig):
        return float(config.options.get("weight_decay", 0.0))
    return float(config.weight_decay)


def lr_factors(config: Any) -> Mapping[str, float]:
    """Return the factors of an optimizer section by part; none for an external optimizer."""
    return {} if isinstance(config, ExternalConfig) else config.lr_factors


def _inverse_sqrt(config: InverseSqrtConfig, lr: float, max_updates: int) -> Schedule:
    return schedulers.inverse_sqrt(lr, config.warmup_updates, config.warmup_init_lr)


def _cosine(config: CosineConfig, lr: float, max_updates: int) -> Schedule:
    total = config.total_updates or max_updates
    return schedulers.cosine(lr, config.warmup_updates, total, config.min_lr)


def _linear(config: LinearConfig, lr: float, max_updates: int) -> Schedule:
    total = config.total_updates or max_updates
    return schedulers.polynomial(lr, config.warmup_updates, total, config.end_lr, power=1.0)


def _polynomial(config: PolynomialConfig, lr: float, max_updates: int) -> Schedule:
    total = config.total_updates or max_updates
    return schedulers.polynomial(lr, config.warmup_updates, total, config.end_lr, config.power)


def _warmup_stable_decay(config: WarmupStableDecayConfig, lr: float, max_updates: int) -> Schedule:
    total = config.total_updates or max_updates
    return schedulers.warmup_stable_decay(
        lr,
        config.warmup_updates,
        config.decay_updates(total),
        total,
        config.end_lr,
        config.decay,
    )


def _constant(config: ConstantConfig, lr: float, max_updates: int) -> Schedule:
    return schedulers.constant(lr, config.warmup_updates)


SCHEDULERS: dict[str, Callable[[Any, float, int], Schedule]] = {
    "inverse_sqrt": _inverse_sqrt,
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "warmup_stable_decay": _warmup_stable_decay,
    "constant": _constant,
}


def build_scheduler(config: Any, lr: float, max_updates: int) -> Schedule:
    """Build the schedule named by `config.name`.

    Args:
        config: scheduler section of the experiment.
        lr: peak learning rate, from the optimizer's section.
        max_updates: end of the decay if the section sets none.

    Returns:
        A function from the update number (1, 2, ...) to the learning rate.
    """
    make = find_plugin("scheduler", config.name, SCHEDULERS)
    if isinstance(config, ExternalConfig):
        return make(lr, max_updates, **config.options)  # type: ignore[arg-type, call-arg]
    return make(config, lr, max_updates)
