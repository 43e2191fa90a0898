"""Axes of a model, compared with models of transformers that have the same values.

Weights are copied from T5 (buckets, RMSNorm, gated gelu), BART (post-norm, learned positions, norm
of embeddings), Marian (post-norm, sinusoidal positions, silu), M2M100 (pre-norm, sinusoidal
positions), Llama (rotary positions and their scaling, grouped queries, swiglu) and Qwen3 (norms of
queries and keys, window). Outputs and the gradients of all weights are compared in float64; angles
and RMSNorm of transformers are in float32 all the same.

    python benchmarks/parity/transformers_axes.py --python VENV/bin/python
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import HEADS, WIDTH, Cases, Names, Part, linear, norm, parser_of, report

SIDE = Path(__file__).with_name("transformers_side.py")
_ROOT = (WIDTH / HEADS) ** 0.5


def _t5(is_gated: bool) -> Names:
    names: Names = {"target_embedding.weight": [Part("shared.weight")]}
    for stack, depth in (("encoder", 3), ("decoder", 2)):
        first = f"{stack}.block.0.layer.0.SelfAttention"
        names[f"{stack}.bias.weight"] = [Part(f"{first}.relative_attention_bias.weight")]
        names |= norm(f"{stack}.final_norm", f"{stack}.final_layer_norm", False)
        for layer in range(depth):
            ours, theirs = f"{stack}.layers.{layer}", f"{stack}.block.{layer}.layer"
            own = f"{theirs}.0.SelfAttention"
            queries = (_ROOT, 1.0, 1.0)  # T5 does not divide scores by the root of the width
            names |= linear(
                f"{ours}.self_attention.qkv",
                *(f"{own}.{each}" for each in "qkv"),
                bias=False,
                factors=queries,
            )
            names |= linear(f"{ours}.self_attention.output", f"{own}.o", bias=False)
            names |= norm(f"{ours}.self_attention_residual.norm", f"{theirs}.0.layer_norm", False)
            last = 1
            if stack == "decoder":
                last, cross = 2, f"{theirs}.1.EncDecAttention"
                names |= linear(
                    f"{ours}.cross_attention.query", f"{cross}.q", bias=False, factors=(_ROOT,)
                )
                names |= linear(
                    f"{ours}.cross_attention.key_value", f"{cross}.k", f"{cross}.v", bias=False
                )
                names |= linear(f"{ours}.cross_attention.output", f"{cross}.o", bias=False)
                residual = f"{ours}.cross_attention_residual.norm"
                names |= norm(residual, f"{theirs}.1.layer_norm", False)
            dense = f"{theirs}.{last}.DenseReluDense"
            up = ("wi_0", "wi_1") if is_gated else ("wi",)
            names |= linear(f"{ours}.feed_forward.up", *(f"{dense}.{w}" for w in up), bias=False)
            names |= linear(f"{ours}.feed_forward.down", f"{dense}.wo", bias=False)
            names |= norm(
                f"{ours}.feed_forward_residual.norm", f"{theirs}.{last}.layer_norm", False
            )
    return names


def _bart(learned: bool = True, final_norm: bool = False) -> Names:
    """BART, or Marian and M2M100 with fixed positions and no norm of embeddings."""
    names: Names = {"target_embedding.weight": [Part("model.shared.weight")]}
    for stack, depth in (("encoder", 3), ("decoder", 2)):
        prefix = f"model.{stack}"
        if learned:
            names[f"{stack}.positions.weight"] = [Part(f"{prefix}.embed_positions.weight", skip=2)]
            names |= norm(f"{stack}.embedding_norm", f"{prefix}.layernorm_embedding", True)
        if final_norm:
            names |= norm(f"{stack}.final_norm", f"{prefix}.layer_norm", True)
        for layer in range(depth):
            ours, theirs = f"{stack}.layers.{layer}", f"{prefix}.layers.{layer}"
            own = f"{theirs}.self_attn"
            names |= linear(
                f"{ours}.self_attention.qkv",
                *(f"{own}.{each}_proj" for each in "qkv"),
                bias=True,
            )
            names |= linear(f"{ours}.self_attention.output", f"{own}.out_proj", bias=True)
            residual = f"{ours}.self_attention_residual.norm"
            names |= norm(residual, f"{theirs}.self_attn_layer_norm", True)
            if stack == "decoder":
                cross = f"{theirs}.encoder_attn"
                names |= linear(f"{ours}.cross_attention.query", f"{cross}.q_proj", bias=True)
                names |= linear(
                    f"{ours}.cross_attention.key_value",
                    f"{cross}.k_proj",
                    f"{cross}.v_proj",
                    bias=True,
                )
                names |= linear(f"{ours}.cross_attention.output", f"{cross}.out_proj", bias=True)
                residual = f"{ours}.cross_attention_residual.norm"
                names |= norm(residual, f"{theirs}.encoder_attn_layer_norm", True)
            names |= linear(f"{ours}.feed_forward.up", f"{theirs}.fc1", bias=True)
            names |= linear(f"{ours}.feed_forward.down", f"{theirs}.fc2", bias=True)
            residual = f"{ours}.feed_forward_residual.norm"
            names |= norm(residual, f"{theirs}.final_layer_norm", True)
    return names


def _llama(has_norms: bool) -> Names:
    names: Names = {"final_norm.weight": [Part("norm.weight")]}
    for layer in range(2):
        ours, theirs = f"layers.{layer}", f"layers.{layer}"
        own = f"{theirs}.self_attn"
        names |= linear(
            f"{ours}.self_attention.qkv", *(f"{own}.{each}_proj" for each in "qkv"), bias=False
        )
        names |= linear(f"{ours}.self_attention.output", f"{own}.o_proj", bias=False)
        if has_norms:
            names |= norm(f"{ours}.self_attention.query_norm", f"{own}.q_norm", False)
            names |= norm(f"{ours}.self_attention.key_norm", f"{own}.k_norm", False)
        names |= norm(f"{ours}.self_attention_residual.norm", f"{theirs}.input_layernorm", False)
        mlp = f"{theirs}.mlp"
        names |= linear(f"{ours}.feed_forward.up", f"{mlp}.gate_proj", f"{mlp}.up_proj", bias=False)
        names |= linear(f"{ours}.feed_forward.down", f"{mlp}.down_proj", bias=False)
        residual = f"{ours}.feed_forward_residual.norm"
        names |= norm(residual, f"{theirs}.post_attention_layernorm", False)
    return names


_T5 = {
    "norm": "rms",
    "norm_position": "pre",
    "positions": {"name": "buckets", "num_buckets": 8, "max_distance": 20},
    "embedding_scale": False,
}
_BART = {"positions": "learned", "activation": "gelu", "embedding_norm": True}
_FIXED = {"name": "sinusoidal"}
_LLAMA = {"norm": "rms", "norm_position": "pre", "activation": "swiglu", "num_kv_heads": 2}
_YARN = {"name": "rotary", "scaling": "yarn", "factor": 4.0, "original_length": 16}
CASES: Cases = {
    "t5 v1.0 (relu)": (_T5, _t5(is_gated=False)),
    "t5 v1.1 (gated gelu)": ({**_T5, "activation": "geglu_tanh"}, _t5(is_gated=True)),
    "bart": ({**_BART, "embedding_scale": False}, _bart()),
    "bart, scaled, silu": ({**_BART, "activation": "silu"}, _bart()),
    "marian": (
        {"activation": "silu", "positions": {**_FIXED, "wavelengths": "exclusive"}},
        _bart(learned=False),
    ),
    "m2m100": (
        {"norm_position": "pre", "positions": {**_FIXED, "offset": 2}},
        _bart(learned=False, final_norm=True),
    ),
    "llama": ({**_LLAMA, "positions": "rotary"}, _llama(False)),
    "llama, linear": (
        {**_LLAMA, "positions": {"name": "rotary", "scaling": "linear", "factor": 4.0}},
        _llama(False),
    ),
    "llama, yarn": ({**_LLAMA, "positions": _YARN}, _llama(False)),
    "qwen3, window of 5": (
        {
            **_LLAMA,
            "positions": "rotary",
            "num_kv_heads": 1,
            "query_key_norm": True,
            "attention_window": 5,
        },
        _llama(True),
    ),
}


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    options = parser_of(__doc__, "transformers").parse_args(argv)
    return report(CASES, options.python, SIDE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
