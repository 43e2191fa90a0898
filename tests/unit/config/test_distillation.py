"""The section of the distillation criterion: contradictions are reported at once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.distillation import DistillationConfig
from tests.unit.config.fixture_types import MakeConfig


def settings(**values: Any) -> DistillationConfig:
    return DistillationConfig.model_validate({"teacher": "runs/big", **values})


def test_one_teacher_or_an_ensemble() -> None:
    assert settings().teachers == ["runs/big"]
    assert settings(teacher=["a", "b"]).teachers == ["a", "b"]
    assert settings(teacher=None, cache="cached").teachers == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"teacher": None}, "teacher: give either teacher or cache"),
        ({"cache": "cached"}, "teacher: give either teacher or cache"),
        ({"teacher": []}, "teacher"),
        ({"teacher": ""}, "teacher"),
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"strategy": "sentence_level"}, "strategy"),
        ({"divergence": "kl"}, "divergence"),
        ({"divergence": "reverse_kl", "top_k": 8}, "divergence: reverse_kl is infinite"),
        ({"teacher": None, "cache": "c", "divergence": "reverse_kl"}, "divergence: reverse_kl is"),
        ({"teacher": None, "cache": "c", "top_k": 4}, "top_k: is set by the cache"),
        ({"teacher": None, "cache": "c", "hidden": {}}, "hidden: a cache contains no layers"),
        ({"teacher": ["a", "b"], "attention": {}}, "attention: needs one teacher"),
        (
            {"teacher_zero3": True, "teacher_expert_parallel": 2},
            "teacher_zero3: cannot be combined with teacher_expert_parallel",
        ),
        ({"kd_weight": None, "ce_weight": 0}, "kd_weight: all weights are 0"),
        ({"strategy": "word_level", "kd_weight": 0}, "kd_weight: all weights are 0"),
        ({"kd_weight": -1}, "kd_weight"),
        ({"alpha_ce": 1}, "alpha_ce"),
        ({"hidden": {"encoder": [-1]}}, "hidden.encoder"),
        ({"attention": {"kinds": []}}, "attention.kinds"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**values)
    assert words in str(caught.value)


def test_weights_by_name() -> None:
    assert settings().weights == {"ce": 1.0, "kd": 1.0}
    assert settings(ce_weight=None, kd_weight=0.8).weights == {"ce": 0.0, "kd": 0.8}
    layers = settings(hidden={"weight": 3}, attention={"weight": None}).weights
    assert layers == {"ce": 1.0, "kd": 1.0, "hidden": 3.0, "attention": 0.0}


def test_word_level_never_counts_the_cross_entropy() -> None:
    assert settings(strategy="word_level", ce_weight=5).weights == {"ce": 0.0, "kd": 1.0}


@pytest.mark.parametrize("around", [True, False])
def test_languages_need_tags(make: MakeConfig, minimal: dict[str, Any], around: bool) -> None:
    inner = {"name": "distillation", "teacher": "t", "strategy": "global_language_wise"}
    criterion = {"name": "model_and_base", "base": inner} if around else inner
    where = "criterion.base.strategy" if around else "criterion.strategy"
    with pytest.raises(ValidationError, match=f"{where}: global_language_wise needs tags"):
        make(criterion=criterion)
    make(criterion=criterion, data={**minimal["data"], "vocab": {"user_symbols": ["<de>"]}})


def test_each_layer_of_the_student_needs_a_teacher_layer(make: MakeConfig) -> None:
    model = {"encoder_layers": 3, "decoder_layers": 2}
    criterion: dict[str, Any] = {"name": "distillation", "teacher": "t"}
    make(model=model, criterion={**criterion, "hidden": {"encoder": [0, 2, 5], "decoder": []}})
    with pytest.raises(ValidationError, match=r"hidden.decoder: names 3 teacher layers, but the"):
        make(model=model, criterion={**criterion, "hidden": {"decoder": [0, 2, 5]}})
