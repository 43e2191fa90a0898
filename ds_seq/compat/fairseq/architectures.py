"""What the named architectures of fairseq and its two descendants imply.

Only what differs from the flags' defaults is listed; width and feed-forward of the decoder are
those of the encoder unless they are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _both(**values: Any) -> dict[str, Any]:
    """Return values for the flags of both stacks."""
    return {f"{stack}_{key}": v for stack in ("encoder", "decoder") for key, v in values.items()}


_TINY = _both(embed_dim=64, ffn_embed_dim=64, layers=2, attention_heads=2)
_IWSLT = _both(embed_dim=512, ffn_embed_dim=1024, layers=6, attention_heads=4)
_BIG = {**_both(embed_dim=1024, ffn_embed_dim=4096, attention_heads=16), "dropout": 0.3}
_WMT_BIG = {**_BIG, "attention_dropout": 0.1}

_FAIRSEQ: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "iwslt_de_en": _IWSLT,
    "wmt_en_de": {},
    "vaswani_wmt_en_de_big": _BIG,
    "vaswani_wmt_en_fr_big": {**_BIG, "dropout": 0.1},
    "wmt_en_de_big": _WMT_BIG,
    "wmt_en_de_big_t2t": {**_WMT_BIG, **_both(normalize_before=True), "activation_dropout": 0.1},
}

_LIGHTCONV = {"encoder_layers": 7, "decoder_layers": 6}
_LIGHTCONV_BIG = {**_LIGHTCONV, **_WMT_BIG}

_LSTM = {"encoder_layers": 1, "decoder_layers": 1, "decoder_embed_dim": 512}

# VarunGumma/fairseq
_BASE = {**_both(normalize_before=True), "layernorm_embedding": True, "activation_fn": "gelu"}
_HUGE = {**_BASE, **_both(embed_dim=1536, ffn_embed_dim=4096, attention_heads=16)}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "transformer": {},
    **{f"transformer_{name}": values for name, values in _FAIRSEQ.items()},
    "transformer_align": {},
    "transformer_wmt_en_de_big_align": _WMT_BIG,
    "transformer_base": _BASE,
    "transformer_base12L": {**_BASE, **_both(layers=12)},
    "transformer_base18L": {**_BASE, **_both(layers=18)},
    "transformer_base24L": {**_BASE, **_both(layers=24)},
    "transformer_big": {**_BASE, **_both(embed_dim=1024, ffn_embed_dim=4096, attention_heads=16)},
    "transformer_huge": _HUGE,
    "transformer_huge_RS": {**_HUGE, **_both(recurrent_stacking=6)},
    "transformer_deep": {
        **_BASE, **_both(layers=18, embed_dim=1024, ffn_embed_dim=8192, attention_heads=16),
    },
    "lightconv": _LIGHTCONV,
    "lightconv_iwslt_de_en": {
        **_both(embed_dim=512, ffn_embed_dim=1024, attention_heads=4, glu="False"),
        **_LIGHTCONV, "attention_dropout": 0.1, "weight_dropout": 0.1, "input_dropout": 0.0,
    },
    "lightconv_wmt_en_de": _LIGHTCONV,
    "lightconv_wmt_en_de_big": _LIGHTCONV_BIG,
    "lightconv_wmt_en_fr_big": {**_LIGHTCONV_BIG, "dropout": 0.1},
    "lightconv_wmt_zh_en_big": {
        **_LIGHTCONV_BIG, "dropout": 0.2, "attention_dropout": 0.2, "weight_dropout": 0.2,
    },
    "lstm": _LSTM,
    "lstm_wiseman_iwslt_de_en": {
        **_LSTM, "encoder_embed_dim": 256, "decoder_embed_dim": 256, "decoder_out_embed_dim": 256,
        "encoder_dropout_in": 0.0, "encoder_dropout_out": 0.0, "decoder_dropout_in": 0.0,
    },
    "lstm_luong_wmt_en_de": {
        "encoder_embed_dim": 1000, "decoder_embed_dim": 1000, "decoder_out_embed_dim": 1000,
        "encoder_layers": 4, "decoder_layers": 4,
        "encoder_dropout_out": 0.0, "decoder_dropout_out": 0.0,
    },
    "transformer_ds_moe": {},
    **{f"transformer_ds_moe_{name}": values for name, values in _FAIRSEQ.items()},
    "transformer_deepspeed_moe": {},
}  # fmt: skip
"""Architecture -> values of flags, by their names with underscores."""

HAS_EXPERTS = ("transformer_ds_moe", "transformer_deepspeed_moe")
"""How the names of the architectures with experts begin."""
