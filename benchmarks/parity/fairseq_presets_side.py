"""fairseq_presets.py: architectures of fairseq, built by the interpreter of its own environment.

    python fairseq_presets_side.py VOCAB

Prints a JSON object: version, and for each architecture its fields and its number of parameters by
the sharing of embeddings. fairseq does not ship the architectures of IndicTrans2's fork, so these
are given as the options they stand for. Three mistakes of the fork are corrected: it normalizes
before sub-layers in the encoder of `huge` only, `huge_RS` calls itself, and `base12L` cannot be
built.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from importlib.metadata import version
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

SHIPPED = (
    "tiny",
    "iwslt_de_en",
    "wmt_en_de",
    "vaswani_wmt_en_de_big",
    "vaswani_wmt_en_fr_big",
    "wmt_en_de_big",
    "wmt_en_de_big_t2t",
)
SHARING = {
    "none": {},
    "decoder": {"share_decoder_input_output_embed": True},
    "all": {"share_all_embeddings": True},
}
_FORK = {
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "layernorm_embedding": True,
    "activation_fn": "gelu",
}


def _sizes(width: int, ffn: int, heads: int) -> dict[str, int]:
    values = {"embed_dim": width, "ffn_embed_dim": ffn, "attention_heads": heads}
    return {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in values.items()}


def _layers(count: int) -> dict[str, int]:
    return {"encoder_layers": count, "decoder_layers": count}


FORK = {
    "base": _FORK,
    **{f"base{count}L": {**_FORK, **_layers(count)} for count in (12, 18, 24)},
    "big": {**_FORK, **_sizes(1024, 4096, 16)},
    "huge": {**_FORK, **_sizes(1536, 4096, 16)},
    # one layer, called six times
    "huge_RS": {**_FORK, **_sizes(1536, 4096, 16), **_layers(1)},
    "deep": {**_FORK, **_sizes(1024, 8192, 16), **_layers(18)},
}
_FIELDS = (
    *(f"{s}_{f}" for s in ("encoder", "decoder") for f in ("embed_dim", "ffn_embed_dim", "layers")),
    *(f"{s}_{f}" for s in ("encoder", "decoder") for f in ("attention_heads", "normalize_before")),
    *("encoder_learned_pos", "decoder_learned_pos", "no_scale_embedding", "layernorm_embedding"),
    *("dropout", "attention_dropout", "activation_dropout", "activation_fn"),
)

LIGHTCONV = ("iwslt_de_en", "wmt_en_de", "wmt_en_de_big", "wmt_en_fr_big", "wmt_zh_en_big")
_DYNAMIC = {
    "encoder_conv_type": "dynamic",
    "decoder_conv_type": "dynamic",
    "weight_softmax": True,
    "max_source_positions": 1024,
    "max_target_positions": 1024,
}
_CONVOLUTION_FIELDS = (
    *_FIELDS[:12],
    *("dropout", "attention_dropout", "weight_dropout", "input_dropout"),
    *(f"{s}_{f}" for s in ("encoder", "decoder") for f in ("conv_type", "kernel_size_list", "glu")),
)

_UNUSED = "conv.conv_bias"  # a parameter that every dynamic convolution has and none of these reads


class _Task:
    def __init__(self, words: int) -> None:
        self.source_dictionary = self.target_dictionary = Dictionary()
        while len(self.target_dictionary) < words:
            self.target_dictionary.add_symbol(f"w{len(self.target_dictionary)}")


def _described(arch: str, options: dict[str, Any], task: _Task) -> dict[str, Any]:
    counts, args = {}, Namespace()
    for sharing, flags in SHARING.items():
        args = Namespace(**options, **flags)
        ARCH_CONFIG_REGISTRY[arch](args)
        with torch.device("meta"):
            model = ARCH_MODEL_REGISTRY[arch].build_model(args, task)
        counts[sharing] = sum(
            weight.numel() for name, weight in model.named_parameters() if _UNUSED not in name
        )
    names = _CONVOLUTION_FIELDS if arch.startswith("lightconv") else _FIELDS
    return {"fields": {name: vars(args)[name] for name in names}, "params": counts}


def main() -> None:
    """Print the description."""
    task = _Task(int(sys.argv[1]))
    found = {name: _described(f"transformer_{name}", {}, task) for name in SHIPPED}
    found |= {name: _described("transformer", options, task) for name, options in FORK.items()}
    for name in LIGHTCONV:
        found[f"lightconv_{name}"] = _described(f"lightconv_{name}", _DYNAMIC, task)
    print(json.dumps({"version": version("fairseq-fixed"), "architectures": found}))


if __name__ == "__main__":
    main()
