"""One rule for every value: nothing is converted; numbers are finite and bounded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.base import _leaves
from ds_seq.config.data import DataConfig
from ds_seq.config.deepspeed import engine_config
from ds_seq.config.load import read_experiment
from ds_seq.config.notes import notes
from ds_seq.config.schema import sections
from ds_seq.config.train import TrainConfig
from ds_seq.errors import UserError

EXPERIMENT: dict[str, Any] = {
    "name": "x",
    "data": {"source_lang": "en", "target_lang": "de", "dir": "d"},
    "validation": {"metrics": [], "best": "loss"},
}
MOE = {"num_experts": 4, "every": 1}

FIELDS = {
    section.path_of(name): (section.config, name)
    for section in sections()
    for name, field in section.config.model_fields.items()
    if {int, float} & set(_leaves(field.annotation))
}


def _bounds(value: Any) -> bool:
    """Whether a bound stands in an annotation, in its metadata or in a nested one."""
    found = any(hasattr(value, name) for name in ("ge", "gt", "le", "lt"))
    nested = [*getattr(value, "__metadata__", ()), *getattr(value, "metadata", ())]
    nested += getattr(value, "__args__", ())
    nested += [value.annotation] if hasattr(value, "annotation") else []
    return found or any(_bounds(item) for item in nested)


@pytest.mark.parametrize("path", FIELDS)
def test_every_number_has_a_bound(path: str) -> None:
    config, name = FIELDS[path]
    assert _bounds(config.model_fields[name])


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, True, "5", 10**32, 1e308, 1e-308])
def test_no_field_takes_a_number_without_sense(path: str, value: float) -> None:
    config, name = FIELDS[path]
    nested = [value] if list in _origins(config.model_fields[name].annotation) else value
    if dict in _origins(config.model_fields[name].annotation):
        nested = {"base": value}  # type: ignore[assignment]
    with pytest.raises(ValidationError) as caught:
        config.model_validate({name: nested})
    assert name in {details["loc"][0] for details in caught.value.errors()}


SWITCHES = {
    section.path_of(name): (section.config, name)
    for section in sections()
    for name, field in section.config.model_fields.items()
    if set(_leaves(field.annotation)) <= {bool, type(None)}
}


@pytest.mark.parametrize("path", SWITCHES)
@pytest.mark.parametrize("value", [1, 0, 1.0, "true", "yes", "on"])
def test_a_switch_is_only_true_or_false(path: str, value: object) -> None:
    config, name = SWITCHES[path]
    with pytest.raises(ValidationError, match=r"should be true or false(?: or null)?, not "):
        config.model_validate({name: value})


def test_the_test_above_can_fail() -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"max_source_length": 5})
    assert "max_source_length" not in {details["loc"][0] for details in caught.value.errors()}


def _origins(annotation: Any) -> set[Any]:
    nested = getattr(annotation, "__args__", ())
    return {getattr(annotation, "__origin__", None)}.union(*map(_origins, nested))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_updates='3'", "train.max_updates: should be a whole number, not '3'"),
        ("optimizer.lr='1e-3'", "optimizer.lr: should be a number, not '1e-3'"),
        ("optimizer.betas=['0.9', 0.98]", "optimizer.betas: should be a number, not '0.9'"),
        ("train.max_hours=true", "train.max_hours: should be a number or null, not true"),
        ("generation.sampling=yes", "generation.sampling: should be true or false, not 'yes'"),
        ("train.save_every=1.5", "train.save_every: should be a whole number or null, not 1.5"),
        ("model.moe.capacity_factor=.inf", "capacity_factor: should be at most .*, not inf"),
        ("generation.max_len_a=.inf", "max_len_a: should be at most 1000, not inf"),
        ("train.max_updates=true", "max_updates: should be a whole number, not true"),
        ("optimizer.betas=[0.9, true]", "betas: should be a number, not true"),
        ("train.seed=99999999999999999999", "seed: should be at most 9223372036854775807"),
        ("criterion.loss_weights.base=-1", "base: should be at least 0, not -1"),
        ("criterion.loss_weights.base=.nan", "loss_weights.base: should be"),
        ("train.clip_norm=.inf", "clip_norm: should be a finite number, not inf"),
        ("optimizer.eps=1e+20", "eps: should be at most 1"),
        ("optimizer.lr=1e-200", "lr: should be 0 or, without its sign, from 1e-30 to 1e"),
        ("generation.length_penalty=1e+20", "length_penalty: should be at most 100"),
    ],
)
def test_the_message_says_what_is_wrong(override: str, words: str) -> None:
    experiment = {**EXPERIMENT, "criterion": {"name": "model_and_base"}}
    with pytest.raises(UserError, match=words):
        read_experiment(experiment, [override])


@pytest.mark.parametrize(
    ("moe", "weights", "learns"),
    [
        (None, {"base": None}, False),
        (None, {"base": 0, "load_balance": 1.0}, False),
        (MOE, {"base": 0, "load_balance": 0, "router_z": None, "budget": 1.0}, False),
        (MOE, {"base": 0, "load_balance": 0, "router_z": 0.1}, True),
        ({**MOE, "conditional_budget": 0.5}, {"base": 0, "load_balance": 0, "router_z": 0}, True),
        (None, {}, True),
    ],
)
def test_some_weight_is_above_zero(moe: Any, weights: dict[str, Any], learns: bool) -> None:
    criterion = {"name": "model_and_base", "loss_weights": weights}
    experiment = {**EXPERIMENT, "criterion": criterion, "model": {"moe": moe}}
    if learns:
        read_experiment(experiment)
    else:
        with pytest.raises(UserError, match=r"loss_weights: the weights of all losses .* nothing"):
            read_experiment(experiment)


@pytest.mark.parametrize("value", [-5, math.inf, math.nan, 10**400])
def test_numbers_of_the_deepspeed_json_make_sense_too(value: float) -> None:
    zero = {"stage": 1, "offload_optimizer": {"device": "none", "ratio": value}}
    with pytest.raises(UserError, match="ratio: should be a finite number from 0"):
        engine_config(TrainConfig(), {"zero_optimization": zero}, moe=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hysteresis", 0, "a finite number from 1 to 100, not 0"),  # the scale would never fall
        ("hysteresis", 10**6, "a finite number from 1 to 100"),
        ("loss_scale_window", 0, "a finite number from 1, not 0"),  # DeepSpeed divides by it
        ("min_loss_scale", 0, "a finite number from 1 to 4,294,967,296"),
        ("initial_scale_power", 1000, "a finite number from 0 to 32"),
        ("loss_scale", 1e-300, "0, or a number from 1 to"),  # all gradients would be 0
    ],
)
def test_numbers_of_the_json_let_a_loss_scale_be_found(
    key: str, value: float, message: str
) -> None:
    with pytest.raises(UserError, match=f"fp16.{key}: should be {message}"):
        engine_config(TrainConfig(precision="fp16"), {"fp16": {key: value}}, moe=False)
    engine_config(TrainConfig(precision="fp16"), {"fp16": {key: 1}}, moe=False)


NOTES = [
    ({}, ()),
    ({"generation": {"sampling": True, "beam": 7}}, ("generation.beam",)),
    ({"train": {"init_checkpoint": "last"}}, ("train.init_checkpoint",)),
    ({"train": {"validate_every": None, "save_every": 5, "keep_best": 3}}, (
        "validation.metrics", "validation.best", "train.keep_best")),
    ({"model": {"moe": {**MOE, "capacity_factor": None, "min_capacity": 9}}}, (
        "model.moe.min_capacity", "criterion")),
    ({"model": {"moe": {**MOE, "router": "sigmoid", "bias_rate": 0.1}}}, ()),
    ({"model": {"moe": {**MOE, "bias_rate": 0.1}}}, ("model.moe.bias_rate", "criterion")),
    ({"criterion": {"name": "model_and_base", "loss_weights": {"load_balance": 0.1}}}, (
        "criterion.loss_weights.load_balance",)),
    ({"criterion": {"name": "distillation", "teacher": "t", "rate": 0.2}}, ("criterion.rate",)),
    ({"criterion": {"name": "model_and_base", "base": {
        "name": "distillation", "teacher": "t", "queue_size": 9}}}, ("criterion.base.queue_size",)),
    ({"criterion": {"name": "minimum_risk"}}, ("criterion.name",)),
    ({"criterion": {"name": "minimum_risk", "search": "beam", "temperature": 2.0},
      "train": {"init_from": "r"}}, ("criterion.temperature",)),
    ({"scheduler": {"name": "cosine", "min_lr": 0.1}, "optimizer": {"lr": 0.01}}, (
        "scheduler.min_lr",)),
    ({"scheduler": {"name": "linear", "total_updates": 9000}, "train": {"max_updates": 9001}}, (
        "scheduler.total_updates",)),
    ({"scheduler": {"name": "linear", "total_updates": 9000}, "train": {"max_updates": 9000}}, ()),
    ({"scheduler": {"name": "cosine", "total_updates": 9000, "min_lr": 1e-6}}, ()),
    ({"optimizer": {"lr": 0.5, "weight_decay": 2.0}}, ("optimizer.weight_decay",)),
    ({"optimizer": {"name": "adam", "lr": 0.5, "weight_decay": 2.0}}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "keys"), NOTES)
def test_options_without_effect_are_noted(changes: dict[str, Any], keys: tuple[str, ...]) -> None:
    found = notes(read_experiment({**EXPERIMENT, **changes}))
    assert {note.partition(": ")[0] for note in found} == set(keys), found
