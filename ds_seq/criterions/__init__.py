"""Criterions: sums over target tokens of cross entropy, distillation and gate losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_seq.config.base import ExternalConfig
from ds_seq.config.objective import CrossEntropyConfig, DistillationConfig, ModelAndBaseConfig
from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.distillation import Distillation, Teacher
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.data.vocab import PAD_ID
from ds_seq.moe.losses import GATE_LOSSES
from ds_seq.plugins import find_plugin

__all__ = ["CRITERIONS", "Criterion", "Loss", "Teacher", "build_criterion"]


def _cross_entropy(config: CrossEntropyConfig, teacher: Teacher | None) -> Criterion:
    return CrossEntropy(config.label_smoothing, config.smoothing, PAD_ID)


def _distillation(config: DistillationConfig, teacher: Teacher | None) -> Criterion:
    assert teacher is not None, "train.py loads the teacher that criterion.teacher names"
    base = CrossEntropy(config.label_smoothing, config.smoothing, PAD_ID)
    return Distillation(base, teacher, config.ce_weight, config.kd_weight, config.temperature)


def _model_and_base(config: ModelAndBaseConfig, teacher: Teacher | None) -> Criterion:
    return ModelAndBase(build_criterion(config.base, teacher), config.loss_weights, GATE_LOSSES)


CRITERIONS: dict[str, Callable[[Any, Teacher | None], Criterion]] = {
    "cross_entropy": _cross_entropy,
    "distillation": _distillation,
    "model_and_base": _model_and_base,
}


def build_criterion(config: Any, teacher: Teacher | None) -> Criterion:
    """Make the criterion that ``config.name`` names, ours or ``package.module:Name``."""
    make = find_plugin("criterion", config.name, CRITERIONS)
    if isinstance(config, ExternalConfig):
        criterion: Criterion = make(**config.options)  # type: ignore[call-arg]
        return criterion
    return make(config, teacher)
