"""Criterions: sums over target tokens of cross entropy, distillation and gate losses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ds_seq.config.base import ExternalConfig
from ds_seq.config.objective import CrossEntropyConfig, DistillationConfig, ModelAndBaseConfig
from ds_seq.criterions.base import Criterion, Loss, PlainCriterion
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.distillation import Distillation
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.criterions.teacher import Teacher, TeacherOutput
from ds_seq.moe.losses import GATE_LOSSES
from ds_seq.plugins import find_plugin
from ds_seq.text.sentencepiece_training import PAD_ID

__all__ = ["CRITERIONS", "Criterion", "Loss", "Teacher", "TeacherOutput", "build_criterion"]


def _cross_entropy(
    config: CrossEntropyConfig, teacher: Teacher | None, tags: Collection[int]
) -> Criterion:
    return CrossEntropy(config.label_smoothing, config.smoothing, PAD_ID)


def _distillation(
    config: DistillationConfig, teacher: Teacher | None, tags: Collection[int]
) -> Criterion:
    assert teacher is not None, "train.py loads what criterion.teacher or criterion.cache names"
    return Distillation(config, teacher, PAD_ID, tags)


def _model_and_base(
    config: ModelAndBaseConfig, teacher: Teacher | None, tags: Collection[int]
) -> Criterion:
    base = build_criterion(config.base, teacher, tags)
    return ModelAndBase(base, config.loss_weights, GATE_LOSSES)


CRITERIONS: dict[str, Callable[[Any, Teacher | None, Collection[int]], Criterion]] = {
    "cross_entropy": _cross_entropy,
    "distillation": _distillation,
    "model_and_base": _model_and_base,
}


def build_criterion(
    config: Any, teacher: Teacher | None, user_symbol_ids: Collection[int] = ()
) -> Criterion:
    """Make the criterion that ``config.name`` names, ours or ``package.module:Name``.

    Args:
        config: the criterion's section of the experiment.
        teacher: the one that a distillation learns from; others do without.
        user_symbol_ids: ids of the tokens that may open a source and name its language.
    """
    make = find_plugin("criterion", config.name, CRITERIONS)
    if isinstance(config, ExternalConfig):
        made = make(**config.options)  # type: ignore[call-arg]
        return made if isinstance(made, Criterion) else PlainCriterion(made)
    return make(config, teacher, user_symbol_ids)
