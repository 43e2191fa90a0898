"""What the named architectures of fairseq and its two descendants imply.

Only what differs from the flags' defaults is listed; width and feed-forward of the decoder are
those of the encoder unless they are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAYERS = ("encoder_layers", "decoder_layers")
"""Flags with a number, or with a list of layers for architectures of gated convolutions."""


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

_GATED: dict[str, dict[str, Any]] = {
    "fconv": {
        "encoder_layers": "[(512, 3)] * 20",
        "decoder_layers": "[(512, 3)] * 20",
        "decoder_embed_dim": 512,
        "decoder_out_embed_dim": 256,
        "decoder_attention": "True",
    },
}
_GATED |= {
    "fconv_iwslt_de_en": {
        **_GATED["fconv"],
        "encoder_embed_dim": 256,
        "decoder_embed_dim": 256,
        "encoder_layers": "[(256, 3)] * 4",
        "decoder_layers": "[(256, 3)] * 3",
    },
    "fconv_wmt_en_ro": {**_GATED["fconv"], "decoder_out_embed_dim": 512},
}
_WMT_GATED = {
    **_GATED["fconv"],
    "encoder_embed_dim": 768,
    "decoder_embed_dim": 768,
    "decoder_out_embed_dim": 512,
}
_GATED |= {
    f"fconv_wmt_en_{language}": {**_WMT_GATED, **dict.fromkeys(LAYERS, layers)}
    for language, layers in (
        ("de", "[(512, 3)] * 9 + [(1024, 3)] * 4 + [(2048, 1)] * 2"),
        ("fr", "[(512, 3)] * 6 + [(768, 3)] * 4 + [(1024, 3)] * 3 + [(2048, 1)] + [(4096, 1)]"),
    )
}


def _lm(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """Return what a named transformer_lm implies."""
    return {
        "decoder_embed_dim": width,
        "decoder_ffn_embed_dim": 4 * width,
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_normalize_before": True,
        **more,
    }


_GPT2: dict[str, Any] = {"attention_dropout": 0.1, "activation_fn": "gelu"}
_GPT3: dict[str, Any] = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_fn": "gelu",
    "decoder_learned_pos": True,
    "share_decoder_input_output_embed": True,
}
_GPT3_SIZES = {
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
    "large": (1536, 24, 16),
    "xl": (2048, 24, 32),
    "2_7": (2560, 32, 32),
    "6_7": (4096, 32, 32),
    "13": (5120, 40, 40),
    "175": (12288, 96, 96),
}
_TIED: dict[str, Any] = {
    "adaptive_input": True,
    "tie_adaptive_weights": True,
    "adaptive_input_cutoff": "20000,60000",
    "adaptive_softmax_cutoff": "20000,60000",
    "adaptive_softmax_dropout": 0.2,
    "tie_adaptive_proj": True,
    "no_decoder_final_norm": True,
}
_WIKI103 = _lm(1024, 16, 8, dropout=0.3, attention_dropout=0.1, activation_dropout=0.1, **_TIED)
_GBW = {
    **_lm(512, 12, 16, attention_dropout=0.1, no_decoder_final_norm=True),
    "decoder_ffn_embed_dim": 4096,
}
_LIGHTCONV_LM = _lm(512, 6, 8, decoder_kernel_size_list=[3, 7, 15, 31, 31, 31])
_OF_TEXT: dict[str, dict[str, Any]] = {
    "transformer_lm": {
        **_lm(512, 6, 8),
        "decoder_normalize_before": False,
        "decoder_input_dim": 512,
        "decoder_output_dim": 512,
    },
    "transformer_lm_big": _lm(1024, 12, 16),
    "transformer_lm_wiki103": _WIKI103,
    "transformer_lm_baevski_wiki103": _WIKI103,
    "transformer_lm_gbw": _GBW,
    "transformer_lm_baevski_gbw": _GBW,
    "transformer_lm_gpt": _lm(768, 12, 12, **_GPT2),
    "transformer_lm_gpt2_tiny": {**_lm(64, 2, 1, **_GPT2), "decoder_ffn_embed_dim": 64},
    "transformer_lm_gpt2_small": _lm(1024, 24, 16, **_GPT2),
    "transformer_lm_gpt2_medium": _lm(1280, 36, 20, **_GPT2),
    "transformer_lm_gpt2_big": _lm(1600, 48, 25, **_GPT2),
    "transformer_lm_gpt2_big_wide": _lm(2048, 24, 32, **_GPT2),
    "transformer_lm_gpt2_bigger": _lm(2048, 48, 32, **_GPT2),
    "transformer_lm_megatron": _lm(3072, 72, 32, **_GPT2),
    "transformer_lm_megatron_11b": {
        **_lm(3072, 72, 32, **_GPT2),
        "decoder_ffn_embed_dim": 6 * 3072,
    },
    **{f"transformer_lm_gpt3_{name}": _lm(*sizes, **_GPT3) for name, sizes in _GPT3_SIZES.items()},
    "lightconv_lm": _LIGHTCONV_LM,
    "lightconv_lm_gbw": {  # whose dropout of attention is that of its flag, whatever it says
        **_LIGHTCONV_LM,
        "decoder_ffn_embed_dim": 4096,
        "decoder_attention_heads": 16,
    },
    "fconv_lm": {
        "decoder_embed_dim": 128,
        "decoder_layers": "[(1268, 4)] * 13",
        "decoder_attention": "False",
    },
    "fconv_lm_dauphin_wikitext103": {
        "decoder_embed_dim": 280,
        "decoder_attention": "False",
        "adaptive_softmax_cutoff": "10000,20000,200000",
        "decoder_layers": "[(850, 6)] * 3 + [(850, 1)] + [(850, 5)] * 4 + [(850, 1)] + "
        "[(850, 4)] * 3 + [(1024, 4)] + [(2048, 4)]",
    },
    "fconv_lm_dauphin_gbw": {
        "decoder_embed_dim": 128,
        "decoder_attention": "False",
        "adaptive_softmax_cutoff": "10000,50000,200000",
        "decoder_layers": "[(512, 5)] + [(128, 1, 0), (128, 5, 0), (512, 1, 3)] * 3 + "
        "[(512, 1, 0), (512, 5, 0), (1024, 1, 3)] * 3 + "
        "[(1024, 1, 0), (1024, 5, 0), (2048, 1, 3)] * 6 + "
        "[(1024, 1, 0), (1024, 5, 0), (4096, 1, 3)]",
    },
    "lstm_lm": {
        "decoder_embed_dim": 512,
        "decoder_layers": 1,
        "decoder_attention": "0",
        "adaptive_softmax_cutoff": "10000,50000,200000",
    },
}

_BART: dict[str, Any] = {
    **_both(layers=12, attention_heads=16, learned_pos=True),
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "share_decoder_input_output_embed": True,
    "share_all_embeddings": True,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "activation_fn": "gelu",
}
_BART_BASE = {
    **_BART,
    **_both(layers=6, attention_heads=12),
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
}
_MBART_BASE = {**_BART_BASE, "no_scale_embedding": False}
_ROBERTA: dict[str, Any] = {
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_layers": 12,
    "encoder_attention_heads": 12,
    "attention_dropout": 0.1,
    "encoder_learned_pos": True,
    "layernorm_embedding": True,
    "no_scale_embedding": True,
    "activation_fn": "gelu",
}
_ROBERTA_LARGE = {
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_layers": 24,
    "encoder_attention_heads": 16,
}
_XLM = {**_ROBERTA_LARGE, "encoder_embed_dim": 1280, "encoder_ffn_embed_dim": 5120}
BARTS: Mapping[str, Mapping[str, Any]] = {
    "bart_base": _BART_BASE,
    "bart_large": _BART,
    "mbart_base": _MBART_BASE,
    "mbart_base_wmt20": {**_MBART_BASE, "layernorm_embedding": False},
    "mbart_large": {**_BART, "no_scale_embedding": False},
}
"""Encoder-decoders that learn from noisy text."""
ROBERTAS: Mapping[str, Mapping[str, Any]] = {
    "roberta": _ROBERTA,
    "roberta_base": _ROBERTA,
    "roberta_large": {**_ROBERTA, **_ROBERTA_LARGE},
    "roberta_prenorm": {
        **_ROBERTA, "layernorm_embedding": False, "encoder_normalize_before": True,
    },
    "xlm": {**_ROBERTA, **_XLM, "encoder_layers": 16},
}  # fmt: skip
"""Masked language models."""

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
    **_GATED,
    **_OF_TEXT,
    **BARTS,
    **ROBERTAS,
    "transformer_ds_moe": {},
    **{f"transformer_ds_moe_{name}": values for name, values in _FAIRSEQ.items()},
    "transformer_deepspeed_moe": {},
}  # fmt: skip
"""Architecture -> values of flags, by their names with underscores."""

HAS_EXPERTS = ("transformer_ds_moe", "transformer_deepspeed_moe")
"""How the names of the architectures with experts begin."""
