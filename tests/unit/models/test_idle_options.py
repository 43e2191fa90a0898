"""Every option of a model changes what is built, or is refused: none is accepted without effect."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ds_seq.config.model import ModelConfig
from ds_seq.models import build_model

VOCAB = 30
SIZES = {"d_model": 8, "num_heads": 2, "ffn_dim": 12, "max_positions": 16, "dropout": 0.3}
ENCODER, DECODER = {**SIZES, "encoder_layers": 1}, {**SIZES, "decoder_layers": 1}
RETENTION = {"decoder_mixer": "retention", "positions": "none"}
CONVOLUTION = {"name": "lightweight_convolution", "kernel_sizes": [3]}
DILATED = {"name": "dilated", "segment_lengths": [8], "dilations": [1]}
LSTM = {**dict.fromkeys(("decoder_embedding_dim", "decoder_hidden_dim", "output_dim"), 8)}
BOTH_LSTM = {**LSTM, **dict.fromkeys(("encoder_embedding_dim", "encoder_hidden_dim"), 8)}
MODELS: dict[str, dict[str, Any]] = {
    "retention": {"name": "decoder_only", **DECODER, **RETENTION},
    "masked convolution": {"name": "encoder_only", **ENCODER, "encoder_mixer": CONVOLUTION},
    "lstm": {"name": "recurrent_lm", "share_embeddings": "none", **LSTM},
}
FURTHER: dict[str, dict[str, Any]] = {
    "pairs": {**ENCODER, **DECODER},
    "pairs retention": {**ENCODER, **DECODER, **RETENTION, "encoder_mixer": "retention"},
    "language": {"name": "decoder_only", **DECODER},
    "masked": {"name": "encoder_only", **ENCODER},
    "dilated": {"name": "decoder_only", **DECODER, "decoder_mixer": DILATED},
    "convolution": {"name": "decoder_only", **DECODER, "decoder_mixer": CONVOLUTION},
    "pairs lstm": {"name": "recurrent", "share_embeddings": "none", **BOTH_LSTM},
    "no attention": {
        "name": "recurrent",
        "share_embeddings": "none",
        **BOTH_LSTM,
        "attention": False,
    },
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "norm": ("rms",),
    "linear": ("bitnet",),
    "activation": ("gelu", "swiglu"),
    "norm_position": ("pre", "deepnorm", "subln"),
    "moe": ({"num_experts": 2, "every": 1},),
    "lora": ({"rank": 2, "modules": ["query"]}, {"rank": 2, "modules": ["value", "up"]}),
    "adapters": ({"ids": ["a"], "active": "a"},),
    "multiway": ({"markers": {"a": 5}},),
    "num_kv_heads": (1,),
    "head_dim": (6,),
    "attention_window": (3,),
    "embedding_dim": (4,),
    "adaptive": ({"cutoffs": [10]}, {"cutoffs": [10], "input": False}),
    "character_embeddings": ({"filters": [[1, 4]], "max_bytes": 4},),
    "lm_head": ("dense",),
    "deepnorm_init": ("torchscale",),
}
WITH: dict[str, dict[str, Any]] = {"deepnorm_init": {"norm_position": "deepnorm"}}
"""Options without which others are refused."""
SKIPPED = ("name", "preset", "encoder_input", "pruned_heads", "share_embeddings", "positions")


def _built(section: dict[str, Any]) -> dict[str, Any]:
    """What a model is made of: its modules, their settings, and its tensors."""
    model = build_model(TypeAdapter(ModelConfig).validate_python(section), VOCAB, 1, 0, seed=1)
    made: dict[str, Any] = {name: _settings(part) for name, part in model.named_modules()}
    return made | {n: (p.shape, p.double().norm().item()) for n, p in model.named_parameters()}


def _settings(part: nn.Module) -> list[Any]:
    plain = (int, float, str, type(None))
    found = {k: v for k, v in vars(part).items() if isinstance(v, plain) and k != "training"}
    return [type(part), repr(part), sorted(found.items(), key=str)]


def _values(name: str, given: Any) -> tuple[Any, ...]:
    """Other values of an option than the one that is given."""
    if name in OPTIONS:
        return OPTIONS[name]
    if isinstance(given, bool):
        return (not given,)
    if isinstance(given, int):
        return (2 * given,)
    return (given / 2 + 0.07,) if isinstance(given, float) else ()


def check_options(base: dict[str, Any]) -> int:
    """Return how many options were tried; all of them changed the model, or were refused."""
    config, tried = TypeAdapter(ModelConfig).validate_python(base), 0
    plain = _built(base)
    for name in type(config).model_fields:
        for value in () if name in SKIPPED else _values(name, vars(config)[name]):
            needed = WITH.get(name, {})
            try:
                changed = _built({**base, **needed, name: value})
            except ValidationError:
                continue
            tried += 1
            assert changed != (_built({**base, **needed}) if needed else plain), (name, value)
    return tried


@pytest.mark.parametrize("name", MODELS)
def test_no_option_is_accepted_without_effect(name: str) -> None:
    assert check_options(MODELS[name]) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_no_option_of_other_models_is_accepted_without_effect(name: str) -> None:
    assert check_options(FURTHER[name]) > 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_kv_heads": 1}, "1 belongs to attention, which there is none of with decoder_mixer"),
        ({"attention_dropout": 0.1}, "0.1 belongs to attention"),
        ({"norm_position": "deepnorm", "deepnorm_init": "torchscale"}, "about the encoder of an e"),
        (
            {"decoder_mixer": CONVOLUTION, "lora": {"modules": ["query", "key"]}},
            "query, key: the model has no such map",
        ),
        (
            {"moe": {"every": 1}, "lora": {"modules": ["up"]}},
            "up: the model has no such map, so that nothing is changed; name others",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ModelConfig).validate_python({**MODELS["retention"], **given})
