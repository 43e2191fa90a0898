"""Named model sizes: what a `model.preset` fills in for fields that the file does not give.

The sizes are those of the same-named architectures of fairseq; a `ds_moe_` twin has experts in
every second layer of both stacks. Only differences to the schema's defaults stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

PRESETS: Mapping[str, Mapping[str, Any]] = {
    **_DENSE,
    **{f"ds_moe_{name}": {**fields, "moe": {}} for name, fields in _DENSE.items()},
}


def apply_preset(section: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """``section`` with the fields it lacks taken from ``preset``; what the section gives wins."""
    return {**PRESETS[preset], **section}
