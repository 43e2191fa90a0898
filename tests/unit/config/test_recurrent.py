"""The section of recurrent models: presets, mistakes, what the rest of the system asks."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.changes import TRAINING, rule_of
from ds_seq.config.model import RecurrentConfig
from ds_seq.config.model.upgrade import stable_json
from tests.unit.config.fixture_types import MakeConfig


def section(**fields: Any) -> RecurrentConfig:
    return RecurrentConfig.model_validate({"name": "recurrent", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "lstm_luong"}, r"no preset 'lstm_luong' \(did you mean 'lstm_luong_wmt_en_de'"),
        (
            {"encoder_embedding_dim": 256, "share_embeddings": "inputs"},
            "share_embeddings: inputs, but encoder_embedding_dim is 256 and decoder_embedding_dim",
        ),
        ({"output_dim": 256}, "share_embeddings: all, but decoder_embedding_dim is 512 and output"),
        ({"num_heads": 8}, "num_heads"),
        ({"moe": {"num_experts": 4}}, "moe"),
        ({"encoder_layers": 0}, "encoder_layers"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_mistakes_name_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**fields)


def test_presets_fill_in_what_is_not_given() -> None:
    luong = section(preset="lstm_luong_wmt_en_de", decoder_layers=2)
    assert (luong.encoder_layers, luong.decoder_layers, luong.encoder_hidden_dim) == (4, 2, 1000)
    assert not luong.bidirectional and luong.dropout_of("decoder", "out") == 0.0
    assert luong.dropout_of("decoder", "in") == luong.dropout == 0.1
    assert section().bidirectional and section().source_dim == 1024


def test_options_of_a_transformer_are_refused_with_the_section(make: MakeConfig) -> None:
    with pytest.raises(ValidationError, match="expert_parallel"):
        make(model={"name": "recurrent"}, train={"expert_parallel": 2})
    hidden = {"name": "distillation", "teacher": "runs/x", "hidden": {}}
    with pytest.raises(ValidationError, match="hidden: model.name recurrent returns no hidden"):
        make(model={"name": "recurrent"}, criterion=hidden)
    maps = {"name": "distillation", "teacher": "runs/x", "attention": {"kinds": ["cross"]}}
    assert make(model={"name": "recurrent"}, criterion=maps).distillation is not None
    with pytest.raises(ValidationError, match="cross has no attention maps"):
        make(model={"name": "recurrent", "decoder_layers": 2}, criterion=maps)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("recurrent", "language_modeling", "recurrent has a source; a language model is decoder_o"),
        ("recurrent_lm", "translation", "recurrent_lm has no source; use transformer"),
        ("recurrent_lm", "denoising", "recurrent_lm cannot learn this task; use transformer"),
        ("recurrent_lm", "masked_language_modeling", "recurrent_lm sees no token behind a hidden"),
    ],
)
def test_a_model_and_its_task_fit(make: MakeConfig, name: str, task: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(model={"name": name}, task={"name": task})


def test_fingerprints_stay_the_same_when_options_are_added() -> None:
    assert stable_json(section()) == b'{"name":"recurrent"}'
    assert stable_json(section(residual=True)) == b'{"name":"recurrent","residual":true}'


def test_a_run_may_go_on_with_another_dropout() -> None:
    assert rule_of("model.decoder_dropout_out") == TRAINING == rule_of("model.dropout")
    assert rule_of("model.input_feeding") not in (TRAINING, "")
