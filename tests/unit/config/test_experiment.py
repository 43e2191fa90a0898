"""The sections and the checks between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.base import ExternalConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import TransformerConfig
from ds_seq.config.optim import AdamConfig
from ds_seq.config.schema import plugin_names, sections
from ds_seq.config.train import TrainConfig
from ds_seq.config.world import check_world
from ds_seq.errors import UserError
from tests.unit.config.fixture_types import MakeConfig


def test_run_folder_follows_the_name_unless_given(make: MakeConfig) -> None:
    assert make().run_folder == Path("runs/small")
    assert make(run_dir="elsewhere").run_folder == Path("elsewhere")


def test_sections_are_frozen(make: MakeConfig) -> None:
    config = make()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.max_tokens = 1  # type: ignore[misc]


def test_every_option_has_a_description() -> None:
    missing = [
        section.path_of(name)
        for section in sections()
        for name, field in section.config.model_fields.items()
        if not field.description
    ]
    assert not missing


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("train", {"expert_parallel": 3}, "expert_parallel: 3 does not divide"),
        ("train", {"max_tokens": 100}, "max_tokens: 100 is less than data.max_source_length"),
        ("train", {"validate_every": None}, "save_every"),
        ("train", {"validate_every": None, "save_every": 5, "patience": 3}, "patience"),
        ("train", {"valid_bleu": False}, "validation.best: bleu is not in validation.metrics"),
        ("validation", {"metrics": ["chrf"]}, "validation.best: bleu is not in"),
        ("validation", {"metrics": []}, "(empty); use one of them, or loss"),
        ("validation", {"best": "los"}, "did you mean 'loss'"),
        ("validation", {"metrics": ["bleu", "chrrf"]}, "no metric 'chrrf' (did you mean 'chrf'?)"),
        ("validation", {"metrics": ["bleu", "chrf", "bleu"]}, "'bleu' is listed twice"),
        ("validation", {"metrics": ["bleu", "loss"]}, "loss is always measured"),
        ("train", {"accumulate": 0}, "accumulate"),
        ("train", {"max_hours": 0}, "max_hours"),
        ("train", {"sparse_clip": True}, "sparse_clip: needs clip_norm above 0"),
        ("model", {"moe": None}, "expert_parallel: 2, but model.moe is null"),
        ("model", {"moe": {"num_experts": 3}}, "does not divide model.moe.num_experts 3"),
        ("model", {"moe": {"num_experts": [4, 4, 2, 4, 4, 5]}}, "model.moe.num_experts 5"),
        ("model", {"moe": {"router": "language"}}, "router: language needs tags"),
        ("model", {"d_model": 100, "num_heads": 8}, "num_heads: 8 does not divide"),
        ("model", {"d_model": 24, "num_heads": 8, "positions": "rotary"}, "must be even, not 3"),
        ("model", {"d_model": 27, "num_heads": 3}, "d_model: sinusoidal"),
        ("model", {"max_positions": 200}, "max_source_length: 256 is more than"),
        ("model", {"dropout": 1.0}, "dropout"),
        ("model", {"preset": "tinny"}, "did you mean 'tiny'"),
        ("scheduler", {"name": "cosine", "warmup_updates": 100_000}, "nothing to decay over"),
        ("scheduler", {"name": "linear", "total_updates": 9}, "ends at update 9"),
        ("scheduler", {"name": "inverse_sqrt", "warmup_updates": 0}, "warmup_updates"),
        (
            "scheduler",
            {"name": "warmup_stable_decay", "warmup_updates": 9, "total_updates": 10},
            "9 reaches into the decay, which begins at update 8; lower it",
        ),
        ("optimizer", {"name": "sgd", "nesterov": True}, "nesterov: needs a momentum"),
        ("optimizer", {"lr": 0}, "lr"),
        ("optimizer", {"lr_factors": {"expert": 0.5}}, "no part 'expert' (did"),
        ("optimizer", {"lr_factors": {"experts": 0}}, "greater than 0"),
        ("optimizer", {"betas": [0.9]}, "betas"),
        ("criterion", {"name": "distillation"}, "teacher"),
        ("criterion", {"name": "model_and_base", "loss_weights": {"gate": 1}}, "no loss 'gate'"),
        ("generation", {"beam": 0}, "beam"),
    ],
)
def test_bad_values_are_refused(
    make: MakeConfig, section: str, values: dict[str, Any], words: str
) -> None:
    base: dict[str, Any] = {"model": {"moe": {}}, "train": {"expert_parallel": 2}}
    make(**base)
    base[section] = {**base.get(section, {}), **values}
    with pytest.raises(ValidationError) as caught:
        make(**base)
    assert words in str(caught.value)


def test_clipping_by_weighted_experts_needs_experts(make: MakeConfig) -> None:
    train = {"sparse_clip": True, "clip_norm": 1.0}
    make(model={"moe": {}}, train=train)
    with pytest.raises(
        ValidationError, match="sparse_clip: applies to experts, but model.moe is n"
    ):
        make(model={"moe": None}, train=train)


def test_bleu_needs_a_raw_reference(minimal: dict[str, Any]) -> None:
    del minimal["data"]["raw"]
    with pytest.raises(ValidationError, match=r"data\.raw\.valid"):
        ExperimentConfig.model_validate(minimal)
    minimal["train"] = {"valid_bleu": False, "best_metric": "loss"}
    ExperimentConfig.model_validate(minimal)


def test_a_split_may_be_one_pair_or_several(make: MakeConfig) -> None:
    one = make().data.raw.valid
    assert [split.source for split in one] == ["valid.en"]
    pairs = [{"source": f"{i}.en", "target": f"{i}.de"} for i in range(3)]
    data = {"source_lang": "en", "target_lang": "de", "dir": "d", "raw": {"valid": pairs}}
    assert [split.target for split in make(data=data).data.raw.valid] == ["0.de", "1.de", "2.de"]


def test_given_fields_win_over_the_preset() -> None:
    model = TransformerConfig.model_validate(
        {"preset": "ds_moe_tiny", "d_model": 32, "moe": {"num_experts": 4}}
    )
    assert (model.d_model, model.ffn_dim, model.encoder_layers) == (32, 64, 2)
    assert model.moe is not None and model.moe.num_experts == 4
    assert TransformerConfig.model_validate({"preset": "ds_moe_tiny", "moe": None}).moe is None


def test_plugin_sections_without_a_name_take_the_default(make: MakeConfig) -> None:
    config = make(optimizer={"lr": 1e-3}, scheduler={"warmup_updates": 5})
    assert isinstance(config.optimizer, AdamConfig)
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 1e-3)
    assert config.scheduler.name == "inverse_sqrt"


@pytest.mark.parametrize("point", ["task", "criterion", "optimizer", "scheduler"])
def test_outside_plugins_bring_free_options(make: MakeConfig, point: str) -> None:
    config = make(**{point: {"name": "my_lab.parts:Best", "options": {"gamma": 2}}})
    section = config.model_dump()[point]
    assert section == {"name": "my_lab.parts:Best", "options": {"gamma": 2}}
    with pytest.raises(ValidationError, match="gamma"):
        make(**{point: {"name": "my_lab.parts:Best", "gamma": 2}})
    with pytest.raises(ValidationError, match="name"):
        make(**{point: {"name": "my_lab/parts:Best"}})


def test_a_base_criterion_may_be_external(make: MakeConfig) -> None:
    criterion = make(criterion={"name": "model_and_base", "base": {"name": "a:B"}}).criterion
    assert criterion.name == "model_and_base"
    assert criterion.base == ExternalConfig(name="a:B")  # type: ignore[union-attr]


@pytest.mark.parametrize("nothing", ["", None, {}])
def test_no_loss_weights_can_be_written_in_three_ways(make: MakeConfig, nothing: object) -> None:
    criterion = make(criterion={"name": "model_and_base", "loss_weights": nothing}).criterion
    assert criterion.loss_weights == {}  # type: ignore[union-attr]


def test_plugin_names_are_the_union_tags() -> None:
    names = plugin_names()
    assert names["optimizer"] == {"adam", "adamw", "adafactor", "sgd"}
    assert names["criterion"] == {
        "cross_entropy",
        "distillation",
        "minimum_risk",
        "hard_em",
        "model_and_base",
    }
    assert names["task"] == {
        "translation",
        "denoising",
        "language_modeling",
        "masked_language_modeling",
    }
    assert names["model"] == {
        "transformer",
        "recurrent",
        "recurrent_lm",
        "convolutional",
        "convolutional_lm",
        "huggingface",
        "decoder_only",
        "encoder_only",
    }
    assert "external" not in set().union(*names.values())


def test_world_size_must_be_a_multiple_of_expert_parallel() -> None:
    train = TrainConfig(expert_parallel=4)
    check_world(train, 8)
    with pytest.raises(UserError, match=r"train\.expert_parallel: 4 does not divide .* 6"):
        check_world(train, 6)


@pytest.mark.parametrize(
    ("symbols", "expert", "said"),
    [
        (["<a>", "<b>"], 3, "generation.expert: 3: the model has 2 experts"),
        (["<a>", "<b>"], "all", "generation.expert: all: the model has 2 experts"),
        (["<a>"], 1, "criterion.experts: <b> is not one of data.vocab.user_symbols"),
    ],
)
def test_experts_of_a_mixture_exist(
    make: MakeConfig, minimal: dict[str, Any], symbols: list[str], expert: Any, said: str
) -> None:
    criterion = {"name": "hard_em", "experts": ["<a>", "<b>"]}
    data = {**minimal["data"], "vocab": {"user_symbols": symbols}}
    with pytest.raises(ValidationError) as refused:
        make(criterion=criterion, data=data, generation={"expert": expert})
    assert said.split(": ", 1)[1] in str(refused.value)


def test_a_prior_is_learned_from_the_encoder_of_a_transformer(
    make: MakeConfig, minimal: dict[str, Any]
) -> None:
    criterion = {"name": "hard_em", "experts": ["<a>", "<b>"], "prior": "learned"}
    data = {**minimal["data"], "vocab": {"user_symbols": ["<a>", "<b>"]}}
    assert make(criterion={**criterion, "assignment": "soft"}, data=data).num_passes == 2
    with pytest.raises(ValidationError, match="prior: learned needs model.name transformer"):
        make(criterion=criterion, data=data, model={"name": "recurrent"})
