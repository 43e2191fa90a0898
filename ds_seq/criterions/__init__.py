"""Criterions: sums over target tokens of cross entropy, distillation and router losses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ds_seq.config.base import ExternalConfig
from ds_seq.config.criterion import (
    CrossEntropyConfig,
    HardEmConfig,
    MinimumRiskConfig,
    ModelAndBaseConfig,
)
from ds_seq.config.distillation import AttentionConfig, DistillationConfig, HiddenConfig
from ds_seq.criterions.base import Criterion, Loss, PlainCriterion
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.criterions.distillation import Distillation
from ds_seq.criterions.layerwise import AttentionTerm, HiddenTerm, MatchedLayers
from ds_seq.criterions.model_and_base import ModelAndBase
from ds_seq.criterions.selection import BatchSelector, QueueSelector, TokenSelector
from ds_seq.criterions.teacher import Teacher, TeacherOutput
from ds_seq.criterions.token_loss import Distil
from ds_seq.names import ROUTER_LOSSES
from ds_seq.plugins import find_plugin

if TYPE_CHECKING:
    from ds_seq.criterions.generator import Generation

__all__ = [
    "CRITERIONS",
    "Criterion",
    "Loss",
    "Teacher",
    "TeacherOutput",
    "attention_term",
    "build_criterion",
    "hidden_term",
    "matched_layers",
]


def _cross_entropy(
    config: CrossEntropyConfig,
    teacher: Teacher | None,
    tags: Collection[int],
    generation: Generation | None,
) -> Criterion:
    if config.r_drop:
        from ds_seq.criterions.r_drop import RDrop  # only where it is used

        return RDrop(config.r_drop, config.label_smoothing, config.smoothing)
    return CrossEntropy(config.label_smoothing, config.smoothing)


def _distillation(
    config: DistillationConfig,
    teacher: Teacher | None,
    tags: Collection[int],
    generation: Generation | None,
) -> Criterion:
    assert teacher is not None, "the teacher of criterion.teacher or criterion.cache must be loaded"
    return Distillation(
        teacher,
        ce_weight=config.weights["ce"],
        label_smoothing=config.label_smoothing,
        smoothing=config.smoothing,
        distil=Distil(config.weights["kd"], config.divergence, config.temperature, config.top_k),
        selector=_selector(config, tags),
        hidden=None if config.hidden is None else hidden_term(config.hidden),
        attention=None if config.attention is None else attention_term(config.attention),
    )


def _selector(config: DistillationConfig, tags: Collection[int]) -> TokenSelector | None:
    if config.strategy == "batch_level":
        return BatchSelector(config.rate)
    if config.strategy == "global_level":
        return QueueSelector(config.rate, config.queue_size, config.shared_queue)
    if config.strategy == "global_language_wise":
        return QueueSelector(config.rate, config.queue_size, config.shared_queue, tags)
    return None


def hidden_term(config: HiddenConfig) -> HiddenTerm:
    """Make the hidden-state term of a config section."""
    return HiddenTerm(config.weight or 0.0, matched_layers(config), config.normalize)


def attention_term(config: AttentionConfig) -> AttentionTerm:
    """Make the attention term of a config section."""
    return AttentionTerm(config.weight or 0.0, matched_layers(config), config.kinds)


def matched_layers(config: HiddenConfig | AttentionConfig) -> MatchedLayers:
    """Return the layers that a config section compares."""
    return MatchedLayers(config.match, config.encoder, config.decoder)


def _minimum_risk(
    config: MinimumRiskConfig,
    teacher: Teacher | None,
    tags: Collection[int],
    generation: Generation | None,
) -> Criterion:
    # only where it is used
    from ds_seq.criterions.generator import Generator, candidate_search
    from ds_seq.criterions.minimum_risk import MinimumRiskTraining
    from ds_seq.scores.sentence_errors import sentence_errors
    from ds_seq.search.sampling import Sampling

    assert generation is not None, "minimum_risk needs what the run generates with"
    drawn = Sampling(top_k=0, top_p=1.0, epsilon=0.0, seed=generation.seed)
    sampling = drawn if config.search == "sampling" else None
    search = candidate_search(generation.search, config.candidates, sampling, config.temperature)
    return MinimumRiskTraining(
        Generator(search, generation.seed),
        sentence_errors(config.metric, generation.target_lang, generation.tokenizer),
        config.sharpness,
        config.include_reference,
        config.ce_weight,
        CrossEntropy(config.label_smoothing, config.smoothing),
    )


def _hard_em(
    config: HardEmConfig,
    teacher: Teacher | None,
    tags: Collection[int],
    generation: Generation | None,
) -> Criterion:
    # only where it is used
    from ds_seq.criterions.hard_em import HardEm
    from ds_seq.text.experts import expert_ids

    assert generation is not None, "hard_em needs the vocabulary of the run"
    starts = expert_ids(generation.tokenizer, config.experts)
    cross_entropy = CrossEntropy(config.label_smoothing, config.smoothing)
    return HardEm(starts, cross_entropy, config.assignment)


def _model_and_base(
    config: ModelAndBaseConfig,
    teacher: Teacher | None,
    tags: Collection[int],
    generation: Generation | None,
) -> Criterion:
    base = build_criterion(config.base, teacher, tags, generation)
    return ModelAndBase(base, config.loss_weights, ROUTER_LOSSES)


_Build = Callable[[Any, Teacher | None, Collection[int], "Generation | None"], Criterion]

CRITERIONS: dict[str, _Build] = {
    "cross_entropy": _cross_entropy,
    "distillation": _distillation,
    "minimum_risk": _minimum_risk,
    "hard_em": _hard_em,
    "model_and_base": _model_and_base,
}


def build_criterion(
    config: Any,
    teacher: Teacher | None,
    user_symbol_ids: Collection[int] = (),
    generation: Generation | None = None,
    scores_labels: bool = False,
) -> Criterion:
    """Build the criterion that `config.name` names, ours or `package.module:Name`.

    Args:
        config: criterion section of the experiment.
        teacher: teacher for distillation; other criterions ignore it.
        user_symbol_ids: ids of the language tags with which a source may start.
        generation: search and vocabulary of the run, for `minimum_risk` and `hard_em`.
        scores_labels: whether the model computes the probabilities of labels alone (adaptive
            softmax), which suffices for cross entropy without smoothing.
    """
    if scores_labels and isinstance(config, CrossEntropyConfig):
        from ds_seq.criterions.label_loss import LabelLoss  # only where it is used

        return LabelLoss()
    if scores_labels and isinstance(config, ModelAndBaseConfig):
        base = build_criterion(config.base, teacher, user_symbol_ids, generation, scores_labels)
        return ModelAndBase(base, config.loss_weights, ROUTER_LOSSES)
    make = find_plugin("criterion", config.name, CRITERIONS)
    if isinstance(config, ExternalConfig):
        made = make(**config.options)  # type: ignore[call-arg]
        return made if isinstance(made, Criterion) else PlainCriterion(made)
    return make(config, teacher, user_symbol_ids, generation)
