"""Convolutions in Transformers and language models, and gated convolutions, against fairseq.

    python benchmarks/parity/fairseq_convolution.py --python VENV/bin/python   # with fairseq-fixed

Outputs and gradients of models with the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import Cases, Names, Part, linear, norm, parser_of, report
from parity.fairseq_axes import EMBEDDINGS, FIRST_POSITION, SINUSOIDAL, attention
from parity.fairseq_lm import adaptive_output

SIDE = Path(__file__).with_name("fairseq_convolution_side.py")
_LIGHT = {"name": "lightweight_convolution"}
_DYNAMIC = {"name": "dynamic_convolution"}
_NORMS = {
    "encoder": {"self_attention": "layer_norm1", "feed_forward": "layer_norm2"},
    "decoder": {
        "self_attention": "conv_layer_norm",
        "cross_attention": "encoder_attn_layer_norm",
        "feed_forward": "final_layer_norm",
    },
}


def _layer(stack: str, place: str, is_dynamic: bool, has_source: bool = True) -> Names:
    mixer = f"{place}.self_attention"
    names = linear(f"{mixer}.input", f"{place}.linear1", bias=True)
    names |= linear(f"{mixer}.output", f"{place}.linear2", bias=True)
    kernels = "weight_linear.weight" if is_dynamic else "weight"
    names[f"{mixer}.kernels.weight"] = [Part(f"{place}.conv.{kernels}")]
    if stack == "decoder" and has_source:
        names |= attention(f"{place}.cross_attention", f"{place}.encoder_attn", is_cross=True)
    for ours, theirs in _NORMS[stack].items():
        if ours == "cross_attention" and not has_source:
            continue
        names |= norm(f"{place}.{ours}_residual.norm", f"{place}.{theirs}", True)
    names |= linear(f"{place}.feed_forward.up", f"{place}.fc1", bias=True)
    return names | linear(f"{place}.feed_forward.down", f"{place}.fc2", bias=True)


def _case(
    encoder: dict[str, object], decoder: dict[str, object], is_pre: bool = False
) -> tuple[dict[str, object], Names]:
    """Return the fields of a model and where its weights come from."""
    names: Names = {
        f"{ours}.weight": [Part(f"{theirs}.weight")] for ours, theirs in EMBEDDINGS["all"].items()
    }
    for stack, depth, section in (("encoder", 3, encoder), ("decoder", 2, decoder)):
        for layer in range(depth):
            is_dynamic = section["name"] == "dynamic_convolution"
            names |= _layer(stack, f"{stack}.layers.{layer}", is_dynamic)
        if is_pre:
            table = Part(f"{stack}.embed_positions.weight", skip=FIRST_POSITION)
            names[f"{stack}.positions.weight"] = [table]
            names |= norm(f"{stack}.final_norm", f"{stack}.layer_norm", True)
    fields: dict[str, object] = {"encoder_mixer": encoder, "decoder_mixer": decoder}
    if is_pre:
        return {**fields, "norm_position": "pre", "positions": "learned"}, names
    return {**fields, "positions": SINUSOIDAL}, names


_PLAIN = {"glu": False}
_BARE = {**_LIGHT, "weight_softmax": False}
CASES: Cases = {
    "dynamic": _case(_DYNAMIC, _DYNAMIC),
    "lightweight": _case(_LIGHT, _LIGHT),
    "dynamic, pre-norm, no GLU": _case(_DYNAMIC | _PLAIN, _DYNAMIC | _PLAIN, is_pre=True),
    "lightweight, wide, no softmax": _case(
        _BARE | {"kernel_sizes": [5], "width": 48}, _BARE | {"kernel_sizes": [4, 31], "width": 16}
    ),
}


def _normed(ours: str, theirs: str, is_kernel: bool = False) -> Names:
    """Return the names of a map with weight norm."""
    return {
        f"{ours}.weight": [Part(f"{theirs}.weight_v", last_first=is_kernel)],
        f"{ours}.length": [Part(f"{theirs}.weight_g")],
        f"{ours}.bias": [Part(f"{theirs}.bias")],
    }


def _gated_stack(stack: str, layers: list[list[int]], has_source: bool) -> Names:
    """Return the names of the layers of a stack, and of the map before them."""
    names = _normed(f"{stack}.input", f"{stack}.fc1")
    widths = [layers[0][0]]
    for number, (channels, _, *back) in enumerate(layers):
        place = f"{stack}.layers.{number}"
        kernels = f"{stack}.convolutions.{number}"
        names |= _normed(f"{place}.convolution.map", kernels, is_kernel=True)
        added = widths[-back[0]] if back and back[0] else channels if back else widths[-1]
        if channels != added:
            names |= _normed(f"{place}.residual", f"{stack}.projections.{number}")
        if has_source:
            attention = f"{stack}.attention.{number}"
            names |= _normed(f"{place}.attention.query", f"{attention}.in_projection")
            names |= _normed(f"{place}.attention.output", f"{attention}.out_projection")
        widths.append(channels)
    return names


def _gated(
    encoder: list[list[int]], decoder: list[list[int]], **fields: object
) -> tuple[dict[str, object], Names]:
    """Return the fields of a model of gated convolutions and where its weights come from."""
    names: Names = {
        f"{ours}.weight": [Part(f"{theirs}.weight")]
        for ours, theirs in EMBEDDINGS["decoder"].items()
    }
    for stack, layers in (("encoder", encoder), ("decoder", decoder)):
        table = Part(f"{stack}.embed_positions.weight", skip=FIRST_POSITION)
        names[f"{stack}.positions.weight"] = [table]
        names |= _gated_stack(stack, layers, has_source=stack == "decoder")
        names |= _normed(f"{stack}.output", f"{stack}.fc2")
    if fields.get("share_embeddings") == "decoder":
        names["target_embedding.bias"] = [Part("decoder.fc3.bias")]
    else:
        names |= _normed("output", "decoder.fc3")
    section: dict[str, object] = {
        "name": "convolutional",
        "embedding_dim": 32,
        "encoder_convolutions": encoder,
        "decoder_convolutions": decoder,
        "dropout": 0.0,
        "max_positions": 64 - FIRST_POSITION,  # rows of the table there
    }
    return {**section, **fields}, names


CASES = {
    **CASES,
    "fconv": _gated([[32, 3], [48, 4], [48, 1]], [[32, 3], [24, 2], [24, 1]], output_dim=16),
    "fconv, shared": _gated(
        [[48, 5]] * 2, [[32, 9]] * 2, output_dim=32, share_embeddings="decoder"
    ),
}


def _light_lm(mixer: dict[str, object], sharing: str) -> tuple[dict[str, object], Names]:
    """Return the fields of a language model and where its weights come from."""
    names: Names = {"target_embedding.weight": [Part("decoder.embed_tokens.weight")]}
    if sharing == "none":
        names["output.weight"] = [Part("decoder.output_projection.weight")]
    for layer in range(2):
        is_dynamic = mixer["name"] == "dynamic_convolution"
        names |= _layer("decoder", f"decoder.layers.{layer}", is_dynamic, has_source=False)
    fields = {"decoder_mixer": {**mixer, "kernel_sizes": [3, 7]}, "share_embeddings": sharing}
    fixed = {"positions": SINUSOIDAL, "norm_position": "pre", "final_norm": False}
    return {"name": "decoder_only", **fields, **fixed}, names


def _gated_lm(
    layers: list[list[int]], cutoffs: list[int] | None = None
) -> tuple[dict[str, object], Names]:
    """Return the fields of a language model of gated convolutions and where its weights are."""
    names: Names = {"target_embedding.weight": [Part("decoder.embed_tokens.weight")]}
    names |= _gated_stack("decoder", layers, has_source=False)
    fields = {"decoder_convolutions": layers, "embedding_dim": 32, "dropout": 0.0}
    if cutoffs is None:
        names |= _normed("decoder.output", "decoder.fc2") | _normed("output", "decoder.fc3")
    else:
        fields["adaptive"] = {"cutoffs": cutoffs, "input": False}
        names |= adaptive_output(cutoffs)
    return {"name": "convolutional_lm", **fields}, names


CASES = {
    **CASES,
    "lightconv_lm": _light_lm(_DYNAMIC, "none"),
    "lightconv_lm, light, tied": _light_lm(_LIGHT, "all"),
    "fconv_lm": _gated_lm([[24, 3], [16, 1, 0], [16, 4, 0], [40, 1, 3], [40, 2]]),
    "fconv_lm, adaptive": _gated_lm([[48, 4]] * 2, [12, 20]),
}


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    options = parser_of(__doc__, "fairseq").parse_args(argv)
    return report(CASES, options.python, SIDE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
