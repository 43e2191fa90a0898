"""Keys of older files: they keep their meaning, and their line in messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_seq.config.load import dump, load_experiment
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.upgrade import stable_json
from ds_seq.config.upgrade import upgrade
from ds_seq.errors import UserError
from tests.unit.config.fixture_types import MakeConfig, WriteFile


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"metrics": ["bleu", "chrf"], "best": "bleu", "max_sentences": None}),
        ({"valid_bleu": True}, {"metrics": ["bleu", "chrf"], "best": "bleu"}),
        ({"best_metric": "loss"}, {"metrics": ["bleu", "chrf"], "best": "loss"}),
        ({"valid_bleu": False, "best_metric": "loss"}, {"metrics": [], "best": "loss"}),
        ({"valid_max_sentences": 7}, {"max_sentences": 7}),
    ],
)
def test_an_old_section_means_the_same(
    make: MakeConfig, old: dict[str, Any], new: dict[str, Any]
) -> None:
    config = make(train={"max_updates": 9, **old})
    assert config == make(train={"max_updates": 9}, validation=new)
    assert config.validation.model_dump().items() >= new.items()
    assert make(**yaml.safe_load(dump(config))) == config


def test_without_validations_the_old_default_of_best_is_allowed(make: MakeConfig) -> None:
    train = {"validate_every": None, "save_every": 5, "valid_bleu": False}
    assert make(train=train).validation.metrics == []


def test_the_given_settings_are_left_as_they_are() -> None:
    data = {"train": {"valid_bleu": False, "seed": 1}}
    upgraded, moved = upgrade(data)
    assert data == {"train": {"valid_bleu": False, "seed": 1}}
    assert upgraded == {"train": {"seed": 1}, "validation": {"metrics": []}}
    assert moved == {("validation", "metrics"): ("train", "valid_bleu")}
    assert upgrade(upgraded) == (upgraded, {})


def test_the_later_file_wins_whichever_key_it_uses(write: WriteFile, experiment: Path) -> None:
    old = write("old.yaml", "extends: small.yaml\ntrain: {best_metric: loss, valid_bleu: false}\n")
    assert load_experiment(old).validation.best == "loss"
    new = write("new.yaml", "extends: old.yaml\nvalidation: {best: ter, metrics: [ter]}\n")
    assert load_experiment(new).validation.best == "ter"
    again = load_experiment(new, ["train.best_metric=loss", "train.valid_bleu=false"])
    assert (again.validation.best, again.validation.metrics) == ("loss", [])
    last = load_experiment(old, ["validation={best: ter, metrics: [ter]}"])
    assert (last.validation.best, last.validation.metrics) == ("ter", ["ter"])


def test_an_old_key_error_is_reported_with_its_line(write: WriteFile, experiment: Path) -> None:
    path = write("old.yaml", "extends: small.yaml\n\ntrain:\n  seed: 2\n  best_metric: rouge\n")
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(f"{path}:5: validation.best: rouge is not in")
    with pytest.raises(UserError, match=r"^command line: validation\.best: ter is not in"):
        load_experiment(experiment, ["train.best_metric=ter"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.valid_bleu=3"],
        ["train.valid_bleu=false", "validation.metrics=[ter]"],
        ["validation=3", "train.valid_bleu=true"],
    ],
)
def test_an_old_key_that_cannot_be_moved_is_refused(experiment: Path, overrides: list[str]) -> None:
    with pytest.raises(UserError, match=r"train\.valid_bleu: unknown key; it is now validation\.m"):
        load_experiment(experiment, overrides)


# as version 0.1.0 wrote it
FIRST_DENSE = (
    '{"name":"transformer","options":{},"preset":null,"d_model":512,"encoder_layers":6,'
    '"decoder_layers":6,"num_heads":8,"ffn_dim":2048,"activation":"relu","dropout":0.1,'
    '"attention_dropout":0.0,"activation_dropout":0.0,"norm_position":"post",'
    '"positions":"sinusoidal","max_positions":1024,"share_embeddings":"all",'
    '"activation_checkpointing":false,"moe":null}'
)
FIRST_MOE = (
    '{"num_experts":8,"top_k":1,"placement":"both","every":2,"layers":null,"ffn_dim":null,'
    '"router":"softmax","router_dim":null,"bias_rate":0.001,"noise":"none",'
    '"second_expert":"always","normalize_weights":null,"capacity_factor":1.25,'
    '"eval_capacity_factor":null,"min_capacity":4,"drop":"position","residual":false,'
    '"shared_experts":0,"conditional_budget":null,"conditional_dropout":0.0,'
    '"output_masking":0.0,"load_balance":"rank"}'
)


@pytest.mark.parametrize(
    ("section", "expected"),
    [({}, FIRST_DENSE), ({"moe": {}}, FIRST_DENSE.replace("null}", f"{FIRST_MOE}}}"))],
)
def test_a_fingerprint_does_not_change_when_the_schema_grows(
    section: dict[str, object], expected: str
) -> None:
    assert stable_json(TransformerConfig.model_validate(section)).decode() == expected


def test_a_new_field_counts_where_it_is_not_the_default() -> None:
    plain, other = (
        stable_json(TransformerConfig.model_validate({"norm": {"name": "layer", "eps": eps}}))
        for eps in (1e-5, 1e-6)
    )
    assert plain.decode() == FIRST_DENSE and b'"eps":' in other
