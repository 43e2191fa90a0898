"""SubLN, DeepNorm, multiway, xPos, retention and dilated attention, compared with TorchScale.

    python benchmarks/parity/torchscale_axes.py --python VENV/bin/python [--longnet]

TorchScale deviates in its DeepNorm decoder, whose norms stay in front (corrected in
torchscale_side.py), and in encoders with xPos, whose scores grow with the distance to later keys;
there we only rotate, so that xPos is compared in a decoder. Its multiway layers split all
sequences of a batch at one place, ours each at its own: there each of its sequences runs alone.

The three forms of its retention divide by different numbers before the norm of the heads, so that
they agree only as far as that norm's epsilon does not matter. Its parallel form is compared as it
is, the others with an epsilon of next to nothing. What they deviate by with its own epsilon is
printed, too.

LongNet is in TorchScale's repository, not in its releases. It is compared in a decoder: where texts
are filled up in an encoder, the filling takes part there. Heads take their offsets in groups there
and in turn here, which is the same if the dilation is the number of heads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import Cases, Names, Part, linear, norm, parser_of, report

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


def _retnet(prefix: str = "") -> Names:
    names: Names = norm("final_norm", f"{prefix}layer_norm", False)
    for layer in range(2):
        ours, theirs = f"layers.{layer}", f"{prefix}layers.{layer}"
        maps = (f"{theirs}.retention.{each}_proj" for each in "qkvg")
        names |= linear(f"{ours}.self_attention.qkvg", *maps, bias=False)
        names |= linear(f"{ours}.self_attention.output", f"{theirs}.retention.out_proj", bias=False)
        first, last = f"{theirs}.retention_layer_norm", f"{theirs}.final_layer_norm"
        names |= norm(f"{ours}.self_attention_residual.norm", first, False)
        up = (f"{theirs}.ffn.fc1", f"{theirs}.ffn.gate")
        names |= linear(f"{ours}.feed_forward.up", *up, bias=False)
        names |= linear(f"{ours}.feed_forward.down", f"{theirs}.ffn.fc2", bias=False)
        names |= norm(f"{ours}.feed_forward_residual.norm", last, False)
    return names


def _retention(eps: float, chunk: int | None = None) -> dict[str, Any]:
    """Return the fields of a model whose decoder is a RetNet."""
    retention = {"num_heads": 2, "value_width": 48, "eps": eps, "chunk_size": chunk}
    return {
        "decoder_mixer": {"name": "retention", **retention},
        "activation": "swiglu",
        "norm": {"name": "rms", "eps": eps},
        "norm_position": "pre",
        "linear_bias": False,
        "embedding_scale": False,
    }


def _dilated(segment_lengths: list[int], dilations: list[int]) -> dict[str, Any]:
    """Return the fields of a model whose decoder is a LongNet."""
    segments = {"segment_lengths": segment_lengths, "dilations": dilations}
    return {
        **_COMMON,
        "norm_position": "pre",
        "positions": "none",
        "decoder_mixer": {"name": "dilated", **segments},
    }


_TINY = 1e-14
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
    "retnet, parallel": (_retention(1e-6), _retnet()),
    "retnet, no eps, recurrent": (_retention(_TINY), _retnet("decoder.")),
    "retnet, no eps, chunkwise": (_retention(_TINY, chunk=7), _retnet()),
}
LONGNET: Cases = {
    "longnet, one segment": (_dilated([64], [1]), _decoder()),
    "longnet, two lengths": (_dilated([8, 64], [1, 4]), _decoder()),
}


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    parser = parser_of(__doc__, "torchscale")
    parser.add_argument("--longnet", action="store_true", help="compare LongNet instead")
    args = parser.parse_args(argv)
    if args.longnet:
        return report(LONGNET, args.python, SIDE, "--longnet")
    return report(CASES, args.python, SIDE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
