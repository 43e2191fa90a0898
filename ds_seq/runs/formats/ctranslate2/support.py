"""Which models CTranslate2 has, known before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ds_seq.config.base import Config, NamedConfig
from ds_seq.config.model import ModelConfig, TransformerConfig
from ds_seq.errors import UserError

# activation of the hidden layer, or of its gate if there is one
ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_tanh": "GELUTanh",
    "silu": "SWISH",
    "glu": "Sigmoid",
    "reglu": "RELU",
    "geglu": "GELU",
    "geglu_tanh": "GELUTanh",
    "swiglu": "SWISH",
}
POSITIONS = frozenset({"sinusoidal", "learned", "none", "rotary", "buckets"})
NORMS = frozenset({"layer", "rms"})
NORM_POSITIONS = frozenset({"pre", "post", "deepnorm"})
ROTARY_SCALINGS = frozenset({"none", "linear"})
_CONVERTED = frozenset(
    "name preset d_model encoder_layers decoder_layers encoder_repeats decoder_repeats num_heads "
    "num_kv_heads head_dim ffn_dim ffn_two_thirds activation linear_bias dropout "
    "attention_dropout activation_dropout layer_drop drop_path activation_checkpointing "
    "norm_position deepnorm_init norm positions max_positions share_embeddings output_bias "
    "embedding_dim embedding_scale embedding_norm moe".split()
)
"""Options of a model that are converted, or that matter in training only."""
_INSTEAD = "use --format safetensors"
_ADVICE = {
    "moe": "merge the experts with --merge-experts, or " + _INSTEAD,
    "lora": "merge it with --merge-lora, or " + _INSTEAD,
}


def convertible(config: ModelConfig) -> TransformerConfig:
    """Return the section of a model that CTranslate2 has.

    Raises:
        UserError: it has no such model; names the option that it lacks.
    """
    if not isinstance(config, TransformerConfig) or len(config.stacks) == 1:
        raise UserError(f"model.name: CTranslate2 has no {config.name!r}; {_INSTEAD}")
    for key, what in _lacking(config):
        advice = _ADVICE.get(key, _INSTEAD)
        raise UserError(f"model.{key}: CTranslate2 has no {what}; {advice}")
    return config


def _lacking(config: TransformerConfig) -> Iterator[tuple[str, str]]:
    """Yield what CTranslate2 lacks as (key, what).

    Supported values are listed, so that new ones are refused and not ignored silently.
    """
    for key, value, known in (
        ("activation", config.activation, ACTIVATIONS),
        ("positions", config.positions.name, POSITIONS),
        ("positions.scaling", vars(config.positions).get("scaling", "none"), ROTARY_SCALINGS),
        ("norm", config.norm.name, NORMS),
        ("norm_position", config.norm_position, NORM_POSITIONS),
    ):
        if value not in known:
            yield key, repr(value)
    if config.moe is not None:
        yield "moe", "experts in an encoder-decoder"
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if key not in _CONVERTED and value != field.get_default():
            yield key, _shown(key, value)


def _shown(key: str, value: Any) -> str:
    if isinstance(value, NamedConfig):
        return repr(vars(value)["name"])
    # of a switch, or a section with many options, the key says it all
    return key if value is True or isinstance(value, Config) else f"{key} {value}"
