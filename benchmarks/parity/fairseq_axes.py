"""Kinds of Transformers that fairseq has, compared with fairseq: outputs and gradients.

    python benchmarks/parity/fairseq_axes.py --python VENV/bin/python     # with fairseq-fixed

fairseq counts positions from the padding id + 1, which is `offset: 2` of our sinusoidal positions;
its learned rows are shifted. Its `--activation-fn swish` cannot be compared: it calls the class
`torch.nn.SiLU` as a function, which raises an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import Cases, Names, Part, linear, norm, parser_of, report

SIDE = Path(__file__).with_name("fairseq_axes_side.py")
FIRST_POSITION = 2  # the padding id + 1
SINUSOIDAL = {"name": "sinusoidal", "offset": FIRST_POSITION}
EMBEDDINGS = {
    "all": {"target_embedding": "encoder.embed_tokens"},
    "decoder": {
        "source_embedding": "encoder.embed_tokens",
        "target_embedding": "decoder.embed_tokens",
    },
    "none": {
        "source_embedding": "encoder.embed_tokens",
        "target_embedding": "decoder.embed_tokens",
        "output": "decoder.output_projection",
    },
}


def attention(ours: str, theirs: str, is_cross: bool) -> Names:
    """Return where the weights of an attention come from."""
    names: Names = {}
    if is_cross:
        names |= linear(f"{ours}.query", f"{theirs}.q_proj", bias=True)
        names |= linear(f"{ours}.key_value", f"{theirs}.k_proj", f"{theirs}.v_proj", bias=True)
    else:
        names |= linear(f"{ours}.qkv", *(f"{theirs}.{each}_proj" for each in "qkv"), bias=True)
    return names | linear(f"{ours}.output", f"{theirs}.out_proj", bias=True)


def layer_names(place: str, has_source: bool) -> Names:
    """Return where the weights of a layer come from."""
    names = attention(f"{place}.self_attention", f"{place}.self_attn", is_cross=False)
    residuals = {"self_attention": "self_attn_layer_norm", "feed_forward": "final_layer_norm"}
    if has_source:
        names |= attention(f"{place}.cross_attention", f"{place}.encoder_attn", is_cross=True)
        residuals["cross_attention"] = "encoder_attn_layer_norm"
    for ours, theirs in residuals.items():
        names |= norm(f"{place}.{ours}_residual.norm", f"{place}.{theirs}", True)
    names |= linear(f"{place}.feed_forward.up", f"{place}.fc1", bias=True)
    return names | linear(f"{place}.feed_forward.down", f"{place}.fc2", bias=True)


def _names(section: dict[str, object]) -> Names:
    """Return where the weights of a model with this section come from."""
    shared = str(section.get("share_embeddings", "all"))
    names: Names = {
        f"{ours}.weight": [Part(f"{theirs}.weight")] for ours, theirs in EMBEDDINGS[shared].items()
    }
    for stack, depth in (("encoder", 3), ("decoder", 2)):
        if section.get("positions") == "learned":
            table = Part(f"{stack}.embed_positions.weight", skip=FIRST_POSITION)
            names[f"{stack}.positions.weight"] = [table]
        if section.get("embedding_norm"):
            names |= norm(f"{stack}.embedding_norm", f"{stack}.layernorm_embedding", True)
        if section.get("norm_position") == "pre":
            names |= norm(f"{stack}.final_norm", f"{stack}.layer_norm", True)
        for layer in range(depth):
            names |= layer_names(f"{stack}.layers.{layer}", has_source=stack == "decoder")
    return names


_SECTIONS: dict[str, dict[str, object]] = {
    "post-norm, sinusoidal": {"positions": SINUSOIDAL},
    "pre-norm, learned, gelu": {
        "norm_position": "pre",
        "positions": "learned",
        "activation": "gelu",
        "share_embeddings": "decoder",
    },
    "no sharing, relu": {
        "norm_position": "pre",
        "positions": SINUSOIDAL,
        "share_embeddings": "none",
    },
    "embedding norm, unscaled": {
        "positions": "learned",
        "embedding_norm": True,
        "embedding_scale": False,
    },
    "no positions, gelu_tanh": {"positions": "none", "activation": "gelu_tanh"},
}
CASES: Cases = {case: (section, _names(section)) for case, section in _SECTIONS.items()}


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    options = parser_of(__doc__, "fairseq").parse_args(argv)
    return report(CASES, options.python, SIDE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
