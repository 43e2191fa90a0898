"""Options of retention: what cannot go with them is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ds_seq.config.changes import HARMLESS, rule_of
from ds_seq.config.model import TransformerConfig
from ds_seq.config.model.presets import PRESETS, preset_of
from tests.unit.config.fixture_types import MakeConfig

BOTH = {"encoder_mixer": "retention", "decoder_mixer": "retention"}
ALONE = {**BOTH, "positions": "none"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (BOTH, "positions: no stack has self-attention"),
        ({**BOTH, "positions": "rotary"}, "positions: no stack has self-attention"),
        ({**ALONE, "attention_window": 4}, "attention_window: no stack has plain self-attention"),
        (
            {"decoder_mixer": {"name": "retention", "num_heads": 3}},
            "decoder_mixer.num_heads: 3 heads of a model of width 512 do not have",
        ),
        (
            {"d_model": 12, "num_heads": 4, "encoder_mixer": "retention"},
            "encoder_mixer.num_heads: 4 heads of a model of width 12 do not have",
        ),
        (
            {"decoder_mixer": {"name": "retention", "value_width": 900}},
            "decoder_mixer.value_width: 900 is no multiple of the number of heads, 8",
        ),
        (
            {"decoder_mixer": {"name": "retention", "longest_memory": 4.0}},
            "longest_memory: must be at least shortest_memory (32)",
        ),
        ({"decoder_mixer": {"name": "retention", "chunk_size": 0}}, "chunk_size"),
        ({"decoder_mixer": {"chunk_size": 8}}, "chunk_size"),
        (
            {"decoder_mixer": "retention", "pruned_heads": {"decoder": [[0]] * 6}},
            "pruned_heads.decoder: there is no self-attention in this stack",
        ),
        ({"decoder_mixer": "retnet"}, "decoder_mixer"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TransformerConfig.model_validate(fields)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder_mixer": "retention", "positions": "rotary", "attention_window": 4},
        {"encoder_mixer": "retention", "num_kv_heads": 2, "query_key_norm": True},
        ALONE,
    ],
)
def test_options_of_attention_stay_those_of_the_other_attentions(fields: dict[str, Any]) -> None:
    TransformerConfig.model_validate(fields)


def test_attention_maps_cannot_be_learned_where_there_are_none(make: MakeConfig) -> None:
    kinds = ["decoder", "cross"]
    criterion = {"name": "distillation", "teacher": "runs/t", "attention": {"kinds": kinds}}
    make(criterion=criterion, model={"encoder_mixer": "retention"})
    with pytest.raises(ValidationError, match=r"attention\.kinds: decoder has no attention maps"):
        make(criterion=criterion, model={"decoder_mixer": "retention"})


def test_a_run_resumes_with_other_chunks() -> None:
    assert rule_of("model.decoder_mixer.chunk_size") == HARMLESS
    assert rule_of("model.decoder_mixer.theta") != HARMLESS


# numbers of parameters of a decoder layer of TorchScale 0.3.0, which has no attention to a source
TORCHSCALE = {"base": 3_179_520, "medium": 12_716_032}


@pytest.mark.parametrize("name", TORCHSCALE)
def test_presets_have_the_decoder_layers_of_torchscale(name: str) -> None:
    cfg = TransformerConfig(preset=f"retnet_{name}")
    retention = cfg.retention_of("decoder")
    assert retention is not None
    shorter = cfg.model_copy(update={"decoder_layers": cfg.decoder_layers - 1})
    layer = cfg.num_params(1000).total - shorter.num_params(1000).total
    cross = 4 * cfg.d_model**2 + cfg.d_model  # four maps and a norm
    assert layer - cross == TORCHSCALE[name]


def test_presets_are_found_by_the_names_of_torchscale() -> None:
    assert preset_of("retnet_xl") == "retnet_xl"
    names = [name for name in PRESETS if name.startswith("retnet")]
    assert len(names) == 7
    for name in names:
        TransformerConfig(preset=name)
