"""Axes of a model, compared with models of transformers that have the same values.

Weights are copied from T5 (buckets, RMSNorm, gated gelu), BART (post-norm, learned positions, norm
of embeddings), Llama (rotary positions and their scaling, grouped queries, swiglu) and Qwen3 (norms
of queries and keys, window). Outputs and the gradients of all weights are compared in float64,
because gradients of some weights are a sum of numbers that nearly cancel each other; angles and
RMSNorm of transformers are in float32 all the same.

    python benchmarks/parity/transformers_axes.py --python VENV/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.models import build_seq2seq
from ds_seq.models.stack import Stack, SubLayer, TransformerLayer
from ds_seq.modules.body import Context

SIDE = Path(__file__).with_name("transformers_side.py")
VOCAB, WIDTH, HEADS = 40, 32, 4
LIMIT = 1e-5
_ROOT = (WIDTH / HEADS) ** 0.5
_SIZES: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "num_heads": HEADS,
    "ffn_dim": 48,
    "dropout": 0.0,
    "max_positions": 64,
}


class Part(NamedTuple):
    """A part of one of our tensors: a tensor of theirs times a factor."""

    name: str
    factor: float = 1.0
    skip: int = 0
    """Rows of theirs that are left out, of positions before the first."""


Names = dict[str, list[Part]]
"""Ours by name -> parts, joined along the first dimension. Ours that are not listed are zero."""


def _linear(ours: str, *theirs: str, bias: bool, factors: Sequence[float] = ()) -> Names:
    scales = factors or [1.0] * len(theirs)
    kinds = ("weight", "bias") if bias else ("weight",)
    return {
        f"{ours}.{kind}": [
            Part(f"{name}.{kind}", s) for name, s in zip(theirs, scales, strict=True)
        ]
        for kind in kinds
    }


def _norm(ours: str, theirs: str, bias: bool) -> Names:
    return _linear(ours, theirs, bias=bias)


def _t5(is_gated: bool) -> Names:
    names: Names = {"target_embedding.weight": [Part("shared.weight")]}
    for stack, depth in (("encoder", 3), ("decoder", 2)):
        first = f"{stack}.block.0.layer.0.SelfAttention"
        names[f"{stack}.bias.weight"] = [Part(f"{first}.relative_attention_bias.weight")]
        names |= _norm(f"{stack}.final_norm", f"{stack}.final_layer_norm", False)
        for layer in range(depth):
            ours, theirs = f"{stack}.layers.{layer}", f"{stack}.block.{layer}.layer"
            own = f"{theirs}.0.SelfAttention"
            queries = (_ROOT, 1.0, 1.0)  # T5 does not divide scores by the root of the width
            names |= _linear(
                f"{ours}.self_attention.qkv",
                *(f"{own}.{each}" for each in "qkv"),
                bias=False,
                factors=queries,
            )
            names |= _linear(f"{ours}.self_attention.output", f"{own}.o", bias=False)
            names |= _norm(f"{ours}.self_attention_residual.norm", f"{theirs}.0.layer_norm", False)
            last = 1
            if stack == "decoder":
                last, cross = 2, f"{theirs}.1.EncDecAttention"
                names |= _linear(
                    f"{ours}.cross_attention.query", f"{cross}.q", bias=False, factors=(_ROOT,)
                )
                names |= _linear(
                    f"{ours}.cross_attention.key_value", f"{cross}.k", f"{cross}.v", bias=False
                )
                names |= _linear(f"{ours}.cross_attention.output", f"{cross}.o", bias=False)
                residual = f"{ours}.cross_attention_residual.norm"
                names |= _norm(residual, f"{theirs}.1.layer_norm", False)
            dense = f"{theirs}.{last}.DenseReluDense"
            up = ("wi_0", "wi_1") if is_gated else ("wi",)
            names |= _linear(f"{ours}.feed_forward.up", *(f"{dense}.{w}" for w in up), bias=False)
            names |= _linear(f"{ours}.feed_forward.down", f"{dense}.wo", bias=False)
            names |= _norm(
                f"{ours}.feed_forward_residual.norm", f"{theirs}.{last}.layer_norm", False
            )
    return names


def _bart() -> Names:
    names: Names = {"target_embedding.weight": [Part("model.shared.weight")]}
    for stack, depth in (("encoder", 3), ("decoder", 2)):
        prefix = f"model.{stack}"
        names[f"{stack}.positions.weight"] = [Part(f"{prefix}.embed_positions.weight", skip=2)]
        names |= _norm(f"{stack}.embedding_norm", f"{prefix}.layernorm_embedding", True)
        for layer in range(depth):
            ours, theirs = f"{stack}.layers.{layer}", f"{prefix}.layers.{layer}"
            own = f"{theirs}.self_attn"
            names |= _linear(
                f"{ours}.self_attention.qkv",
                *(f"{own}.{each}_proj" for each in "qkv"),
                bias=True,
            )
            names |= _linear(f"{ours}.self_attention.output", f"{own}.out_proj", bias=True)
            residual = f"{ours}.self_attention_residual.norm"
            names |= _norm(residual, f"{theirs}.self_attn_layer_norm", True)
            if stack == "decoder":
                cross = f"{theirs}.encoder_attn"
                names |= _linear(f"{ours}.cross_attention.query", f"{cross}.q_proj", bias=True)
                names |= _linear(
                    f"{ours}.cross_attention.key_value",
                    f"{cross}.k_proj",
                    f"{cross}.v_proj",
                    bias=True,
                )
                names |= _linear(f"{ours}.cross_attention.output", f"{cross}.out_proj", bias=True)
                residual = f"{ours}.cross_attention_residual.norm"
                names |= _norm(residual, f"{theirs}.encoder_attn_layer_norm", True)
            names |= _linear(f"{ours}.feed_forward.up", f"{theirs}.fc1", bias=True)
            names |= _linear(f"{ours}.feed_forward.down", f"{theirs}.fc2", bias=True)
            residual = f"{ours}.feed_forward_residual.norm"
            names |= _norm(residual, f"{theirs}.final_layer_norm", True)
    return names


def _llama(has_norms: bool) -> Names:
    names: Names = {"final_norm.weight": [Part("norm.weight")]}
    for layer in range(2):
        ours, theirs = f"layers.{layer}", f"layers.{layer}"
        own = f"{theirs}.self_attn"
        names |= _linear(
            f"{ours}.self_attention.qkv", *(f"{own}.{each}_proj" for each in "qkv"), bias=False
        )
        names |= _linear(f"{ours}.self_attention.output", f"{own}.o_proj", bias=False)
        if has_norms:
            names |= _norm(f"{ours}.self_attention.query_norm", f"{own}.q_norm", False)
            names |= _norm(f"{ours}.self_attention.key_norm", f"{own}.k_norm", False)
        names |= _norm(f"{ours}.self_attention_residual.norm", f"{theirs}.input_layernorm", False)
        mlp = f"{theirs}.mlp"
        names |= _linear(
            f"{ours}.feed_forward.up", f"{mlp}.gate_proj", f"{mlp}.up_proj", bias=False
        )
        names |= _linear(f"{ours}.feed_forward.down", f"{mlp}.down_proj", bias=False)
        residual = f"{ours}.feed_forward_residual.norm"
        names |= _norm(residual, f"{theirs}.post_attention_layernorm", False)
    return names


_T5 = {
    "norm": "rms",
    "norm_position": "pre",
    "positions": {"name": "buckets", "num_buckets": 8, "max_distance": 20},
    "embedding_scale": False,
}
_BART = {"positions": "learned", "activation": "gelu", "embedding_norm": True}
_LLAMA = {"norm": "rms", "norm_position": "pre", "activation": "swiglu", "num_kv_heads": 2}
_YARN = {"name": "rotary", "scaling": "yarn", "factor": 4.0, "original_length": 16}
CASES: dict[str, tuple[dict[str, Any], Names]] = {
    "t5 v1.0 (relu)": (_T5, _t5(is_gated=False)),
    "t5 v1.1 (gated gelu)": ({**_T5, "activation": "geglu_tanh"}, _t5(is_gated=True)),
    "bart": ({**_BART, "embedding_scale": False}, _bart()),
    "bart, scaled, silu": ({**_BART, "activation": "silu"}, _bart()),
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


def _decoder_alone(model: Any) -> nn.Module:
    """Return the decoder without attention to a source."""
    layers = []
    for layer in model.decoder.layers:
        parts = {
            name: SubLayer(layer.get_submodule(f"{name}_residual"), layer.get_submodule(name))
            for name in ("self_attention", "feed_forward")
        }
        layers.append(TransformerLayer(parts))
    old = model.decoder
    return Stack(layers, old.positions, old.final_norm, 0.0, False, 0.0, bias=old.bias)


def _joined(theirs: dict[str, Tensor], parts: list[Part], invert: bool) -> Tensor:
    return torch.cat(
        [
            theirs[part.name][part.skip :] * (1.0 / part.factor if invert else part.factor)
            for part in parts
        ]
    )


def compare(case: str, tensors: dict[str, Tensor]) -> tuple[float, float]:
    """Return the largest error of the outputs and of the gradients, relative to their largest."""
    section, names = CASES[case]
    cfg = TransformerConfig.model_validate({**_SIZES, **section})
    model: Any = build_seq2seq(cfg, VOCAB, 1, 0, seed=1).double().eval()
    values, weights, gradients = (
        {
            name.removeprefix(f"{case}/{kind}/"): value
            for name, value in tensors.items()
            if name.startswith(f"{case}/{kind}/")
        }
        for kind in ("values", "weights", "gradients")
    )
    is_whole = "source" in values
    part = model if is_whole else _decoder_alone(model)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if name in names:
                parameter.copy_(_joined(weights, names[name], invert=False))
            else:
                assert name.endswith("bias"), f"{case}: {name} has no counterpart"
                parameter.zero_()
    if is_whole:
        mask = values["target_mask"]
        sides = (values["source"], values["source_mask"], values["target"], mask)
        output = part(Seq2SeqInputs(*sides, num_targets=int(mask.sum()))).logits
    else:
        output = part(values["x"], Context()).hidden
    (output * values["factors"]).sum().backward()
    error = _relative(output, values["output"])
    worst = 0.0
    ours = dict(part.named_parameters())
    for name, parts in names.items():
        found = ours[name].grad
        assert found is not None, name
        worst = max(worst, _relative(found, _joined(gradients, parts, invert=True)))
    return error, worst


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has transformers")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "theirs.safetensors"
        done = subprocess.run([args.python, str(SIDE), str(out)], check=True, capture_output=True)
        version = json.loads(done.stdout.splitlines()[-1])["transformers"]
        tensors = load_file(out)
    print(f"transformers {version}, torch {torch.__version__}, float64")
    print(f"{'case':<24}{'output':>10}{'gradients':>12}")
    worst = 0.0
    for case in CASES:
        errors = compare(case, tensors)
        worst = max(worst, *errors)
        print(f"{case:<24}{errors[0]:>10.1e}{errors[1]:>12.1e}")
    print(f"largest error, relative to the largest value: {worst:.1e}; limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
