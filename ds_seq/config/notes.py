"""Notes on settings that are allowed but rarely intended, such as options without any effect.

What cannot work is an error. What merely does nothing is a note, because a file often extends
another one whose options no longer apply: the dense twin of a model with experts, for example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ds_seq.config.criterion import CrossEntropyConfig, MinimumRiskConfig, ModelAndBaseConfig
from ds_seq.config.distillation import DistillationConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import MoeConfig
from ds_seq.config.model.router import ExternalRouterConfig
from ds_seq.config.optim import (
    AdafactorConfig,
    AdamConfig,
    ConstantConfig,
    CosineConfig,
    DecayingConfig,
    InverseSqrtConfig,
    SgdConfig,
)
from ds_seq.names import BASE, LOAD_BALANCE


def notes(config: ExperimentConfig) -> list[str]:
    """Return the notes, one line each: dotted key, then what to know."""
    return [
        *_without_effect(config),
        *_loss_notes(config),
        *_warmup_notes(config),
        *_rate_notes(config),
        *_ratio_notes(config),
    ]


class _Idle(NamedTuple):
    """Options that do nothing in some experiments."""

    section: str
    fields: tuple[str, ...]
    idle: Callable[[ExperimentConfig], bool]
    why: str


def _moe(test: Callable[[MoeConfig], bool]) -> Callable[[ExperimentConfig], bool]:
    return lambda config: config.model.moe is not None and test(config.model.moe)


def _distillation(
    test: Callable[[DistillationConfig], bool],
) -> Callable[[ExperimentConfig], bool]:
    return lambda config: config.distillation is not None and test(config.distillation)


def _no_validation(config: ExperimentConfig) -> bool:
    return config.train.validate_every is None


def _drops_nothing(moe: MoeConfig) -> bool:
    factors = (moe.capacity_factor, moe.eval_capacity_factor)
    return not moe.has_capacity or factors == (None, None)


def _searches_candidates(config: ExperimentConfig) -> bool:
    _, base = config.base_criterion
    return isinstance(base, MinimumRiskConfig) and base.search == "beam"


_IDLE = (
    _Idle(
        "train",
        ("init_checkpoint", "upcycle_noise", "allow_missing", "allow_unexpected"),
        lambda config: config.train.init_from is None,
        "train.init_from is null",
    ),
    _Idle(
        "train",
        ("keep_best", "sanity_validation_batches"),
        _no_validation,
        "train.validate_every is null",
    ),
    _Idle(
        "validation",
        ("metrics", "best", "max_sentences"),
        _no_validation,
        "train.validate_every is null",
    ),
    _Idle(
        "validation",
        ("max_sentences",),
        lambda config: not _no_validation(config) and not config.validation.metrics,
        "validation.metrics is empty",
    ),
    _Idle("model.moe", ("every",), _moe(lambda moe: moe.layers is not None), "layers lists them"),
    _Idle(
        "model.moe",
        ("bias_rate",),
        _moe(lambda moe: moe.router != "sigmoid"),
        "it applies to router sigmoid",
    ),
    _Idle(
        "model.moe",
        ("capacity_factor",),
        _moe(lambda moe: moe.router == "language"),
        "router language drops nothing",
    ),
    _Idle("model.moe", ("min_capacity", "drop"), _moe(_drops_nothing), "no token is dropped"),
    _Idle(
        "model.moe",
        ("normalize_weights",),
        _moe(lambda moe: moe.normalize_weights == "before_dropping" and _drops_nothing(moe)),
        "without dropping, before and after are the same",
    ),
    _Idle(
        "generation",
        ("beam", "length_penalty", "length_penalty_form"),
        lambda config: config.generation.sampling,
        "sampling does not search",
    ),
    _Idle(
        "criterion",
        ("temperature",),
        _searches_candidates,
        "the candidates of a beam search are not drawn",
    ),
    _Idle(
        "criterion",
        ("queue_size", "shared_queue"),
        _distillation(lambda distillation: not distillation.strategy.startswith("global")),
        "it applies to the global strategies",
    ),
    _Idle(
        "criterion",
        ("rate",),
        _distillation(lambda distillation: distillation.strategy.startswith("word")),
        "the strategy does not select tokens",
    ),
    _Idle(
        "criterion",
        ("ce_weight", "label_smoothing", "smoothing"),
        _distillation(lambda distillation: distillation.strategy == "word_level"),
        "the strategy word_level only logs the cross entropy",
    ),
    _Idle(
        "criterion",
        ("checkpoint", "teacher_precision", "teacher_expert_parallel", "teacher_zero3"),
        _distillation(lambda distillation: distillation.cache is not None),
        "the cache replaces the teacher",
    ),
    _Idle(
        "criterion",
        ("divergence", "temperature", "top_k", "strategy"),
        _distillation(lambda distillation: not distillation.kd_weight),
        "kd_weight is 0, so the divergence is only logged",
    ),
)


def _without_effect(config: ExperimentConfig) -> Iterator[str]:
    base, _ = config.base_criterion
    for entry in _IDLE:
        if not entry.idle(config):
            continue
        place = base if entry.section == "criterion" else entry.section
        section = config
        for key in place.split("."):
            section = vars(section)[key]
        fields = type(section).model_fields
        for name in entry.fields:
            if vars(section)[name] != fields[name].get_default(call_default_factory=True):
                yield f"{place}.{name}: has no effect here: {entry.why}"


def _loss_notes(config: ExperimentConfig) -> Iterator[str]:
    criterion, moe = config.criterion, config.model.moe
    where, base = config.base_criterion
    if isinstance(base, MinimumRiskConfig) and config.train.init_from is None:
        yield (
            f"{where}.name: minimum_risk improves a trained model, and all candidates of a new one "
            "are equally bad; name one in train.init_from"
        )
    if isinstance(criterion, ModelAndBaseConfig):
        losses = (BASE, *(moe.losses if moe is not None else ()))
        for name, weight in criterion.loss_weights.items():
            if weight and name not in losses:
                yield (
                    f"criterion.loss_weights.{name}: has no effect here: this model has no such "
                    f"loss; it has {', '.join(losses)}"
                )
    if moe is None or isinstance(moe.router, ExternalRouterConfig):
        return
    # the other routers balance without a loss
    if isinstance(criterion, CrossEntropyConfig) and LOAD_BALANCE in moe.losses:
        if moe.router not in ("sigmoid", "hash"):
            yield (
                "criterion: cross_entropy leaves out the routers' losses, so nothing balances the "
                "experts; model_and_base has them"
            )


def _warmup_notes(config: ExperimentConfig) -> Iterator[str]:
    """Compare the warm-up with the length of the run.

    Schedules that decay to a given update are checked with the experiment itself.
    """
    scheduler, last = config.scheduler, config.train.max_updates
    if isinstance(scheduler, InverseSqrtConfig | ConstantConfig):
        if scheduler.warmup_updates > last:
            yield (
                f"scheduler.warmup_updates: {scheduler.warmup_updates} is longer than the run, "
                f"which ends at update {last} (train.max_updates), before the learning rate has "
                "reached its peak; lower it unless this is only a trial"
            )


def _rate_notes(config: ExperimentConfig) -> Iterator[str]:
    """Compare learning rates: with the peak, with 0, and with the weight decay."""
    optimizer, scheduler = config.optimizer, config.scheduler
    if not isinstance(optimizer, AdamConfig | AdafactorConfig | SgdConfig):
        return
    ends: dict[str, float] = {}
    if isinstance(scheduler, InverseSqrtConfig):
        ends["warmup_init_lr"] = scheduler.warmup_init_lr
    elif isinstance(scheduler, CosineConfig):
        ends["min_lr"] = scheduler.min_lr
    elif isinstance(scheduler, DecayingConfig):
        ends["end_lr"] = scheduler.end_lr
    for name, rate in ends.items():
        if rate > optimizer.lr:
            yield f"scheduler.{name}: {rate:g} is above optimizer.lr {optimizer.lr:g}, the peak"
    if isinstance(scheduler, DecayingConfig):
        (name, rate), *_ = ends.items()
        total, last = scheduler.total_updates, config.train.max_updates
        if rate == 0.0 and total is not None and total < last:
            yield (
                f"scheduler.total_updates: the learning rate is 0 from update {total} on, so "
                f"nothing is learned up to train.max_updates {last}; set scheduler.{name}"
            )
    decay = optimizer.lr * optimizer.weight_decay
    if decay >= 1.0 and optimizer.name != "adam":  # which adds the decay to the gradient
        yield (
            f"optimizer.weight_decay: with optimizer.lr {optimizer.lr:g}, an update takes off "
            f"{decay:g} times each weight"
        )


def _ratio_notes(config: ExperimentConfig) -> Iterator[str]:
    data = config.data
    most = type(data.clean).model_fields["max_ratio"].default
    is_pairs = data.language is None
    if is_pairs and data.source_lang == data.target_lang and data.clean.max_ratio <= most:
        yield (
            f"data.clean.max_ratio: {data.clean.max_ratio:g} drops pairs with a side that is that "
            "much longer, as texts are than their summaries; for summarization, set "
            "data.clean.preset=summarization"
        )
