"""Named model sizes: values that a `model.preset` sets for fields that the file does not give.

They equal fairseq's architectures `transformer_NAME` field by field; whether embeddings are shared
is no part of them, neither in fairseq (`--share-all-embeddings`) nor here (`share_embeddings`). A
`ds_moe_` variant has experts in every second layer of both stacks. Only differences from the schema
defaults are listed. A `retnet_` one has decoder layers of the size of TorchScale's language model
`retnet_NAME`, with attention to a source, and an encoder of the same width and depth. A
`lightconv_` one is fairseq's architecture of this name, whose convolutions are dynamic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import Config
from ds_seq.config.model.section import with_preset
from ds_seq.config.model.upgrade import upgraded
from ds_seq.plugins import nearest

_TINY = {"d_model": 64, "ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2, "num_heads": 2}
_IWSLT = {"ffn_dim": 1024, "num_heads": 4}
_BIG = {"d_model": 1024, "ffn_dim": 4096, "num_heads": 16}
_HUGE = {"d_model": 1536, "ffn_dim": 4096, "num_heads": 16}
_DEEP = {"d_model": 1024, "ffn_dim": 8192, "num_heads": 16}
_PRE_NORM = {"norm_position": "pre", "activation": "gelu", "embedding_norm": True}
"""What the architectures of IndicTrans2's fairseq have in common."""


def _layers(each: int) -> dict[str, int]:
    return {"encoder_layers": each, "decoder_layers": each}


_DENSE: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "iwslt_de_en": _IWSLT,
    "wmt_en_de": {},
    "vaswani_wmt_en_de_big": {**_BIG, "dropout": 0.3},
    "vaswani_wmt_en_fr_big": _BIG,
    "wmt_en_de_big": {**_BIG, "dropout": 0.3, "attention_dropout": 0.1},
    "wmt_en_de_big_t2t": {
        **_BIG,
        "dropout": 0.3,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "norm_position": "pre",
    },
    "base": _PRE_NORM,
    **{f"base{each}L": {**_PRE_NORM, **_layers(each)} for each in (12, 18, 24)},
    "big": {**_PRE_NORM, **_BIG},
    "huge": {**_PRE_NORM, **_HUGE},
    "huge_RS": {
        **_PRE_NORM,
        **_HUGE,
        **_layers(1),
        "encoder_repeats": 6,
        "decoder_repeats": 6,
    },
    "deep": {**_PRE_NORM, **_DEEP, **_layers(18)},
}

_RETNET = {  # width, width of values and feed-forwards, heads of retention, layers
    "base": (512, 864, 2, 6),
    "medium": (1024, 1728, 4, 16),
    "xl": (2048, 3456, 8, 24),
    "3b": (2560, 4280, 10, 32),
    "7b": (4096, 6912, 16, 32),
    "13b": (5120, 8560, 20, 40),
    "65b": (8192, 13824, 32, 64),
}
_HEAD = 64  # width of the heads of attention, of which RetNet has none


def _retnet(width: int, inner: int, heads: int, layers: int) -> dict[str, Any]:
    """Return an encoder-decoder whose decoder layers are those of a RetNet with attention."""
    return {
        "decoder_mixer": {"name": "retention", "num_heads": heads, "value_width": inner},
        "d_model": width,
        "ffn_dim": inner,
        "num_heads": width // _HEAD,
        "activation": "swiglu",
        "norm": "rms",
        "norm_position": "pre",
        "linear_bias": False,
        "dropout": 0.0,
        **_layers(layers),
    }


_DYNAMIC: dict[str, Any] = {"name": "dynamic_convolution", "input_dropout": 0.1}
_PLAIN: dict[str, Any] = {"name": "dynamic_convolution", "glu": False}


def _convolution(section: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return a model with this convolution in both stacks."""
    return {"encoder_mixer": section, "decoder_mixer": section, "encoder_layers": 7, **fields}


_LIGHTCONV_BIG = {**_BIG, "attention_dropout": 0.1}
_LIGHTCONV = {
    "iwslt_de_en": _convolution(_PLAIN, {**_IWSLT, "attention_dropout": 0.1}),
    "wmt_en_de": _convolution(_DYNAMIC, {}),
    "wmt_en_de_big": _convolution(_DYNAMIC, {**_LIGHTCONV_BIG, "dropout": 0.3}),
    "wmt_en_fr_big": _convolution(_DYNAMIC, _LIGHTCONV_BIG),
    "wmt_zh_en_big": _convolution(_DYNAMIC, {**_BIG, "attention_dropout": 0.2, "dropout": 0.2}),
}


_NAMED = {
    **_DENSE,
    **{f"lightconv_{name}": fields for name, fields in _LIGHTCONV.items()},
    **{f"retnet_{name}": _retnet(*sizes) for name, sizes in _RETNET.items()},
}

_ELSEWHERE = {
    "": "wmt_en_de",
    "transformer": "wmt_en_de",
    "lightconv": "lightconv_wmt_en_de",
    "deepspeed_moe": "ds_moe_wmt_en_de",
    "ds_moe": "ds_moe_wmt_en_de",
    "18_18": "deep",
    "it": "huge",
    "4x": "huge",
    "4x_rs": "huge_RS",
    "base_12l": "base12L",
    "base_18l": "base18L",
    "base_24l": "base24L",
}
"""Preset of the architecture that has another name elsewhere, without its `transformer_`."""


def _with_experts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preset with experts in every second layer; of a stack of one layer, in that one."""
    return {**fields, "moe": {"every": 1} if fields.get("encoder_layers") == 1 else {}}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    **_NAMED,
    **{f"ds_moe_{name}": _with_experts(fields) for name, fields in _NAMED.items()},
}


class PresetFields(Config):
    """Name of the model and of its preset sizes."""

    name: str = Field(description="Kind of model.")
    preset: str | None = Field(
        default=None,
        description="Named sizes for fields that are not given: "
        + ", ".join(f"`{name}`" for name in _NAMED)
        + "; each also with experts, as `ds_moe_tiny`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        return with_preset(upgraded(section), PRESETS)

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            known = ", ".join(_NAMED)
            raise ValueError(
                f"no preset {preset!r}{_meant(preset)}; there are {known}, each also as ds_moe_..."
            )
        return preset


def architectures() -> Iterator[tuple[str, str]]:
    """Yield each dense `--arch` of fairseq and its relatives with its preset."""
    yield "transformer", "wmt_en_de"
    for name in _DENSE:
        yield f"transformer_{name}", name
    yield "lightconv", "lightconv_wmt_en_de"
    for name in _LIGHTCONV:
        yield f"lightconv_{name}", f"lightconv_{name}"


def preset_of(architecture: str) -> str | None:
    """Return the preset of a `--arch` of fairseq and its relatives, or None if there is none."""
    name = architecture.lower().replace("-", "_")
    plain = name.removeprefix("transformer").removeprefix("_")
    known = {each.lower(): each for each in PRESETS}
    return known.get(plain) or _ELSEWHERE.get(plain)


def _meant(preset: str) -> str:
    """Return a hint; only a name that mentions experts is answered with a model that has them."""
    exact = preset_of(preset)
    if exact is not None:
        return f" (did you mean {exact!r}?)"
    name = preset.lower().replace("-", "_").removeprefix("transformer_")
    is_sparse = "moe" in name
    return nearest(name, [each for each in PRESETS if each.startswith("ds_moe_") == is_sparse])
