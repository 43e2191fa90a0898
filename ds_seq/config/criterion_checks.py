"""Checks of the criterion against other sections of an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_seq.config.base import ExternalConfig
from ds_seq.config.criterion import (
    CrossEntropyConfig,
    HardEmConfig,
    MinimumRiskConfig,
    ModelAndBaseConfig,
)
from ds_seq.config.distillation import DistillationConfig
from ds_seq.config.task import LanguageModelingConfig, MaskedLanguageModelingConfig
from ds_seq.names import BASE
from ds_seq.plugins import nearest

if TYPE_CHECKING:
    from ds_seq.config.experiment import ExperimentConfig

Errors = list[tuple[str, str]]
"""Dotted keys, and what is wrong with their values."""


def distillation_errors(config: ExperimentConfig) -> Errors:
    """Return what of a distillation does not fit the model, the vocabulary or the data."""
    (where, _), criterion = config.base_criterion, config.distillation
    if criterion is None:
        return []
    errors = []
    tags = config.data.vocab.source_side.user_symbols
    if criterion.strategy == "global_language_wise" and not tags:
        errors.append(
            (
                f"{where}.strategy",
                "global_language_wise needs tags at the start of the source lines; list them "
                "in data.vocab.user_symbols, such as [<de>, <fr>]",
            )
        )
    return errors + _imitation_errors(config, where, criterion)


def _imitation_errors(
    config: ExperimentConfig, where: str, criterion: DistillationConfig
) -> Errors:
    """Return what the layers of the model do not have of what is to be imitated."""
    errors = []
    for name, section in (("hidden", criterion.hidden), ("attention", criterion.attention)):
        if section is None:
            continue
        for stack in config.model.stacks:
            given, depth = section.layers_of(stack), config.model.calls_of(stack)
            if given and len(given) != depth:
                errors.append(
                    (
                        f"{where}.{name}.{stack}",
                        f"names {len(given)} teacher layers, but the {stack} calls {depth} "
                        f"(model.{stack}_layers times model.{stack}_repeats)",
                    )
                )
    kinds = () if criterion.attention is None else criterion.attention.kinds
    for kind in (each for each in kinds if each not in config.model.attention_maps):
        message = f"{kind} has no attention maps in the layers of this model"
        errors.append((f"{where}.attention.kinds", message))
    if criterion.hidden is not None and config.model.state_width is None:
        message = f"model.name {config.model.name} returns no hidden states; use null"
        errors.append((f"{where}.hidden", message))
    return errors


def pair_errors(config: ExperimentConfig) -> Errors:
    """Return what of the criterion needs pairs if the task reads single texts."""
    (where, criterion), task = config.base_criterion, config.task
    if not isinstance(task, LanguageModelingConfig | MaskedLanguageModelingConfig):
        return []
    if isinstance(criterion, MinimumRiskConfig | HardEmConfig):
        message = f"{criterion.name} needs the sources of an encoder-decoder, which task "
        return [(f"{where}.name", f"{message}{task.name} does not have; use cross_entropy")]
    if not isinstance(criterion, DistillationConfig):
        return []
    sections = {"hidden": criterion.hidden, "attention": criterion.attention}
    message = f"compares layers of encoder-decoders, and task {task.name} has none; use null"
    return [(f"{where}.{key}", message) for key, section in sections.items() if section is not None]


def adaptive_errors(config: ExperimentConfig) -> Errors:
    """Return what does not fit adaptive softmax: its bands, and losses of all scores."""
    (where, criterion), adaptive = config.base_criterion, config.model.adaptive_bands
    if adaptive is None:
        return []
    errors, size = [], config.data.vocab.target_side.size
    if adaptive.cutoffs[-1] >= size:
        message = f"{adaptive.cutoffs[-1]} is not below data.vocab.size {size}; use smaller cutoffs"
        errors.append(("model.adaptive.cutoffs", message))
    needs = "needs the scores of all tokens, which adaptive softmax (model.adaptive) does not "
    needs += "compute in training"
    if isinstance(criterion, CrossEntropyConfig):
        given = {"label_smoothing": criterion.label_smoothing, "r_drop": criterion.r_drop}
        errors += [
            (f"{where}.{field}", f"{value} {needs}; use 0")
            for field, value in given.items()
            if value
        ]
    elif not isinstance(criterion, ExternalConfig):
        errors.append((f"{where}.name", f"{criterion.name} {needs}; use cross_entropy"))
    return errors


def mixture_errors(config: ExperimentConfig) -> Errors:
    """Return experts of a mixture that do not exist, and a prior that the model cannot learn."""
    (where, criterion), vocab = config.base_criterion, config.data.vocab.target_side
    experts, expert = config.experts, config.generation.expert
    errors = []
    if isinstance(criterion, HardEmConfig) and criterion.prior == "learned":
        if config.model.name != "transformer":
            message = f"learned needs model.name transformer, not {config.model.name}; use uniform"
            errors.append((f"{where}.prior", message))
    if expert != 1 and (expert == "all" or expert > len(experts)):
        there_are = f"{len(experts)} experts" if experts else "no experts (criterion hard_em)"
        why = "a validation needs one of them" if experts else "leave it out"
        errors.append(("generation.expert", f"{expert}: the model has {there_are}; {why}"))
    if vocab.made_elsewhere is None:
        errors += [
            (
                f"{where}.experts",
                f"{name} is not one of data.vocab.user_symbols"
                f"{nearest(name, vocab.user_symbols)}; add it there",
            )
            for name in experts
            if name not in vocab.user_symbols
        ]
    return errors


def weight_errors(config: ExperimentConfig) -> Errors:
    """Return an error if no loss of the model has a weight."""
    criterion, moe = config.criterion, config.model.moe
    if not isinstance(criterion, ModelAndBaseConfig):
        return []
    there_are = (BASE, *(moe.losses if moe is not None else ()))
    if any(criterion.loss_weights.get(name, 1.0) for name in there_are):
        return []
    return [
        (
            "criterion.loss_weights",
            f"the weights of all losses of this model ({', '.join(there_are)}) are 0 or null, "
            "so nothing is learned; set one above 0",
        )
    ]
