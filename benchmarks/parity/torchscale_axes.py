"""SubLN, DeepNorm, multiway and xPos, compared with TorchScale.

    python benchmarks/parity/torchscale_axes.py --python VENV/bin/python

TorchScale deviates in its DeepNorm decoder, whose norms stay in front (corrected in
torchscale_side.py), and in encoders with xPos, whose scores grow with the distance to later keys;
there we only rotate, so that xPos is compared in a decoder. Its multiway layers split all
sequences of a batch at one place, ours each at its own: there each of its sequences runs alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import Cases, Names, Part, linear, norm, report

SIDE = Path(__file__).with_name("torchscale_side.py")


def _layer(ours: str, theirs: str, is_subln: bool, has_source: bool) -> Names:
    names = linear(
        f"{ours}.self_attention.qkv",
        *(f"{theirs}.self_attn.{each}_proj" for each in "qkv"),
        bias=True,
    )
    names |= linear(f"{ours}.self_attention.output", f"{theirs}.self_attn.out_proj", bias=True)
    first = f"{theirs}.self_attn_layer_norm"
    names |= norm(f"{ours}.self_attention_residual.norm", first, True)
    if has_source:
        cross = f"{theirs}.encoder_attn"
        names |= linear(f"{ours}.cross_attention.query", f"{cross}.q_proj", bias=True)
        keys = (f"{cross}.k_proj", f"{cross}.v_proj")
        names |= linear(f"{ours}.cross_attention.key_value", *keys, bias=True)
        names |= linear(f"{ours}.cross_attention.output", f"{cross}.out_proj", bias=True)
        names |= norm(f"{ours}.cross_attention_residual.norm", f"{cross}_layer_norm", True)
    names |= linear(f"{ours}.feed_forward.up", f"{theirs}.ffn.fc1", bias=True)
    names |= linear(f"{ours}.feed_forward.down", f"{theirs}.ffn.fc2", bias=True)
    names |= norm(f"{ours}.feed_forward_residual.norm", f"{theirs}.final_layer_norm", True)
    if is_subln:
        inner = f"{theirs}.self_attn.inner_attn_ln"
        names |= norm(f"{ours}.self_attention.inner_norm", inner, True)
        names |= norm(f"{ours}.feed_forward.inner_norm", f"{theirs}.ffn.ffn_layernorm", True)
    return names


def _both(is_subln: bool) -> Names:
    names: Names = {"target_embedding.weight": [Part("encoder.embed_tokens.weight")]}
    for stack, depth in (("encoder", 3), ("decoder", 2)):
        for layer in range(depth):
            place = f"{stack}.layers.{layer}"
            names |= _layer(place, place, is_subln, stack == "decoder")
        if is_subln:
            names |= norm(f"{stack}.final_norm", f"{stack}.layer_norm", True)
    return names


def _decoder() -> Names:
    names: Names = norm("final_norm", "layer_norm", True)
    for layer in range(2):
        names |= _layer(f"layers.{layer}", f"layers.{layer}", False, False)
    return names


def _multiway() -> Names:
    """Return names of an encoder of which each module but embeddings is there twice."""
    names: Names = norm("final_norm", "layer_norm", True)
    for layer in range(3):
        names |= _layer(f"layers.{layer}", f"layers.{layer}", True, False)
    return {
        _set_of(name, number, "feed_forward", "sets."): [
            part._replace(name=_set_of(part.name, "AB"[number], "ffn", "")) for part in parts
        ]
        for number in (0, 1)
        for name, parts in names.items()
    }


def _set_of(name: str, chosen: object, body: str, prefix: str) -> str:
    """Put the number or letter of a set behind the module that is there twice."""
    module, _, kind = name.rpartition(".")
    first, found, rest = module.partition(f".{body}.")
    if found:
        return f"{first}{found}{prefix}{chosen}.{rest}.{kind}"
    return f"{module}.{prefix}{chosen}.{kind}"


_COMMON = {"activation": "gelu", "embedding_scale": False}
CASES: Cases = {
    "subln": ({**_COMMON, "norm_position": "subln", "positions": "none"}, _both(is_subln=True)),
    "deepnorm": (
        {**_COMMON, "norm_position": "deepnorm", "positions": "none"},
        _both(is_subln=False),
    ),
    "multiway, encoder": (
        {
            **_COMMON,
            "norm_position": "subln",
            "positions": "none",
            "multiway": {"markers": {"b": 1}},
        },
        _multiway(),
    ),
    "xpos, decoder": ({**_COMMON, "norm_position": "pre", "positions": "xpos"}, _decoder()),
}


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has torchscale")
    return report(CASES, parser.parse_args(argv).python, SIDE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
