"""What a change of the experiment means for a run that resumes."""

from __future__ import annotations

from typing import Any

import pytest

from ds_seq.config.changes import (
    DATA,
    GROUP,
    HARMLESS,
    TEACHER,
    TRAINING,
    VALID_DATA,
    changes,
    refuse,
    rule_of,
    score_changes,
    settings,
)
from ds_seq.config.load import read_experiment
from ds_seq.config.schema import sections
from ds_seq.errors import UserError

BASE: dict[str, Any] = {
    "name": "x",
    "data": {
        "source_lang": "en",
        "target_lang": "de",
        "dir": "data",
        "raw": {"valid": {"source": "v.en", "target": "v.de"}},
    },
    "model": {"moe": {"num_experts": 4}},
    "validation": {"metrics": [], "best": "loss"},
}
FACTS: dict[str, Any] = {DATA: "a", VALID_DATA: "b", GROUP: 2, "deepspeed": {}}


def of(*overrides: str, **facts: Any) -> dict[str, Any]:
    """Settings of an experiment; ``facts`` by the names of the constants."""
    return settings(read_experiment(BASE, overrides), {**FACTS, **facts})


def test_every_option_has_a_rule() -> None:
    options = [
        section.path_of(name) for section in sections() for name in section.config.model_fields
    ]
    containers = {section.path for section in sections()}
    missing = [option for option in options if option not in containers and rule_of(option) is None]
    assert not missing, "options without a rule in config/changes.py"
    assert rule_of("data") is None, "an unknown option of a section must not get a rule by chance"
    assert rule_of("train") is None


@pytest.mark.parametrize(
    ("override", "effect"),
    [
        ("train.keep_last=5", HARMLESS),
        ("data.dir=elsewhere", HARMLESS),
        ("validation.max_sentences=9", HARMLESS),
        ("generation.beam=2", HARMLESS),
        ("train.max_updates=7", HARMLESS),
        ("optimizer.lr=0.5", TRAINING),
        ("model.dropout=0.5", TRAINING),
        ("criterion.label_smoothing=0.3", TRAINING),
        ("train.precision=bf16", TRAINING),
        ("model.num_heads=4", "another model"),
        ("model.moe.top_k=2", "another model"),
        ("train.seed=2", "another order of the data"),
        ("train.max_tokens=5000", "another order of the data"),
        ("data.max_source_length=99", "another order of the data"),
        ("data.target_lang=fr", "another task"),
    ],
)
def test_the_effect_of_an_option(override: str, effect: str) -> None:
    key = override.partition("=")[0]
    found = changes(of(), of(override))
    assert [(change.key, change.effect) for change in found] == [(key, effect)]
    if effect in (HARMLESS, TRAINING):
        refuse(found, [], of(), "runs/x")
        return
    with pytest.raises(UserError, match=rf"{key}: .* -> .*{effect} than runs/x .*--allow-change"):
        refuse(found, [], of(), "runs/x")
    refuse(found, [key], of(), "runs/x")
    refuse(found, [key.partition(".")[0]], of(), "runs/x")


def test_all_refused_options_are_named_at_once() -> None:
    found = changes(of(), of("train.seed=2", "model.num_heads=4", "optimizer.lr=1"))
    with pytest.raises(UserError) as error:
        refuse(found, [], of(), "runs/x")
    assert sorted(line.split(":")[0] for line in str(error.value).splitlines()) == [
        "model.num_heads",
        "train.seed",
    ]


def test_a_section_that_goes_is_one_change() -> None:
    found = changes(of(), of("model.moe=null"))
    assert [str(change) for change in found] == ["model.moe: a section -> not set"]
    assert found[0].is_refused
    (back,) = changes(of("model.moe=null"), of())
    assert str(back) == "model.moe: not set -> a section"


def test_what_is_allowed_must_exist() -> None:
    with pytest.raises(UserError, match=r"--allow-change train\.sed: no such option.*train\.seed"):
        refuse([], ["train.sed"], of(), "runs/x")


def test_a_schedule_that_decays_to_the_last_update_changes_with_it() -> None:
    cosine = "scheduler={name: cosine, warmup_updates: 1}"
    (change,) = changes(of(cosine), of(cosine, "train.max_updates=7"))
    assert change.effect == TRAINING
    fixed = "scheduler={name: cosine, warmup_updates: 1, total_updates: 9}"
    (change,) = changes(of(fixed), of(fixed, "train.max_updates=7"))
    assert change.effect == HARMLESS


def test_capacity_is_the_model_where_experts_choose() -> None:
    chosen = ("model.moe.router=expert_choice", "model.moe.placement=encoder", "model.moe.top_k=1")
    chosen = (*chosen, "model.moe.normalize_weights=none")
    (change,) = changes(of(*chosen), of(*chosen, "model.moe.capacity_factor=2"))
    assert change.effect == "another model"
    (change,) = changes(of(), of("model.moe.capacity_factor=2"))
    assert change.effect == TRAINING


def test_data_and_layout_are_compared_as_far_as_they_are_known() -> None:
    (change,) = changes(of(), of(**{DATA: "c"}))
    assert change.is_refused and str(change) == "data.train: other shards"
    assert [each.effect for each in changes(of(), of(**{GROUP: 4}))] == [TRAINING]
    # two ranks with one batch or one rank with two: the same updates
    assert [each.effect for each in changes(of(), of("train.accumulate=2"))] == [HARMLESS]
    stage = {"zero_optimization": {"stage": 1}}
    (change,) = changes(of(), of(deepspeed=stage))
    assert (change.key, change.effect) == ("deepspeed.zero_optimization.stage", HARMLESS)
    assert not changes(of(), of(**{VALID_DATA: None})), "without validation nothing is known"
    taught = of(**{TEACHER: "a"})
    (change,) = changes(taught, of(**{TEACHER: "b"}))
    assert (str(change), change.effect) == ("weights of the teacher: others", TRAINING)
    assert score_changes([change], "loss") and not score_changes([change], "bleu")
    assert not changes(of(), taught), "an earlier version did not record it"
    old_run = settings(read_experiment(BASE), {})
    assert not changes(old_run, of(deepspeed=stage))


@pytest.mark.parametrize(
    ("override", "loss", "bleu"),
    [
        ("generation.beam=2", False, True),
        ("generation.max_tokens=77", False, False),
        ("validation.max_sentences=5", False, True),
        ("criterion.label_smoothing=0.3", True, False),
        ("validation={metrics: [ter], best: ter}", True, True),
        ("optimizer.lr=1", False, False),
    ],
)
def test_scores_that_mean_something_else(override: str, loss: bool, bleu: bool) -> None:
    found = changes(of(), of(override))
    assert bool(score_changes(found, "loss")) is loss
    assert bool(score_changes(found, "bleu")) is bleu


def test_another_validation_text_changes_every_score() -> None:
    found = changes(of(), of(**{VALID_DATA: "c"}))
    assert score_changes(found, "loss") and score_changes(found, "chrf")
