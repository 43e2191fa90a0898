"""Named model sizes: values that a `model.preset` sets for fields that the file does not give.

The sizes equal those of fairseq's architectures of the same name; a `ds_moe_` variant has experts
in every second layer of both stacks. Only differences from the schema defaults are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import Config
from ds_seq.config.model.upgrade import upgraded
from ds_seq.plugins import nearest

_TINY = {"d_model": 64, "ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2, "num_heads": 2}
_IWSLT = {"ffn_dim": 1024, "num_heads": 4}
_BIG = {"d_model": 1024, "ffn_dim": 4096, "num_heads": 16}

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
}

_ELSEWHERE = {
    "transformer": "wmt_en_de",
    "base": "wmt_en_de",
    "transformer_base": "wmt_en_de",
    "big": "vaswani_wmt_en_de_big",
    "transformer_big": "vaswani_wmt_en_de_big",
}
"""Preset of the size that other toolkits call by another name."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    **_DENSE,
    **{f"ds_moe_{name}": {**fields, "moe": {}} for name, fields in _DENSE.items()},
}


class PresetFields(Config):
    """Name of the model and of its preset sizes."""

    name: str = Field(description="Kind of model.")
    preset: str | None = Field(
        default=None,
        description="Named sizes for fields that are not given: "
        + ", ".join(f"`{name}`" for name in PRESETS)
        + ".",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        section = upgraded(section)
        preset = section.get("preset")
        if not isinstance(preset, str) or preset not in PRESETS:
            return section  # an unknown preset is reported by the field's own check
        return {**PRESETS[preset], **section}

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"no preset {preset!r}{_meant(preset)}; there are {known}")
        return preset


def _meant(preset: str) -> str:
    """Return a hint; only a name that mentions experts is answered with a model that has them."""
    name = preset.lower().replace("-", "_").removeprefix("transformer_")
    is_sparse = "moe" in name
    known = {each: each for each in PRESETS if each.startswith("ds_moe_") == is_sparse}
    known |= {} if is_sparse else _ELSEWHERE
    if name in known:
        return f" (did you mean {known[name]!r}?)"
    return nearest(name, known.values())
