"""Named sizes of language models: fairseq's architectures `transformer_NAME`, field by field.

Those with `lightconv` are its architectures of the same name, whose convolutions are dynamic. Of
those with adaptive embeddings, `transformer_lm_wiki103` has them here, too; `transformer_lm_gbw`
leaves them to further flags there, and to `model.adaptive` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _lm(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """Return a model with norms first and an output table of its own, four times as wide inside."""
    return {
        "d_model": width,
        "ffn_dim": 4 * width,
        "decoder_layers": layers,
        "num_heads": heads,
        "norm_position": "pre",
        "share_embeddings": "none",
        **more,
    }


_GPT2 = {"activation": "gelu", "attention_dropout": 0.1}
_GPT3 = {
    "activation": "gelu",
    "dropout": 0.0,
    "positions": "learned",
    "share_embeddings": "all",
}
_LIGHTCONV = {
    "final_norm": False,
    "decoder_mixer": {"name": "dynamic_convolution", "input_dropout": 0.1},
}

LM_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "lm": _lm(512, 6, 8),
    "lm_big": _lm(1024, 12, 16),
    "lm_wiki103": _lm(
        1024,
        16,
        8,
        dropout=0.3,
        attention_dropout=0.1,
        activation_dropout=0.1,
        final_norm=False,
        share_embeddings="all",
        adaptive={"cutoffs": [20_000, 60_000], "tie_projections": True, "softmax_dropout": 0.2},
    ),
    "lm_gbw": {**_lm(512, 12, 16, attention_dropout=0.1, final_norm=False), "ffn_dim": 4096},
    "lm_gpt": _lm(768, 12, 12, **_GPT2),
    "lm_gpt2_tiny": {**_lm(64, 2, 1, **_GPT2), "ffn_dim": 64},
    "lm_gpt2_small": _lm(1024, 24, 16, **_GPT2),
    "lm_gpt2_medium": _lm(1280, 36, 20, **_GPT2),
    "lm_gpt2_big": _lm(1600, 48, 25, **_GPT2),
    "lm_gpt3_small": _lm(768, 12, 12, **_GPT3),
    "lm_gpt3_medium": _lm(1024, 24, 16, **_GPT3),
    "lightconv_lm": _lm(512, 6, 8, **_LIGHTCONV),
    "lightconv_lm_gbw": {
        **_lm(512, 6, 16, attention_dropout=0.1, **_LIGHTCONV),
        "ffn_dim": 4096,
    },
}
