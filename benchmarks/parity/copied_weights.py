"""Compare one of our models with a peer's that has the same weights: outputs and gradients.

The peer's side runs in an environment of its own and writes, for each case, weights, inputs,
outputs and the gradients of the weights for the loss `sum(outputs * factors)`, as
`CASE/KIND/NAME`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ds_seq.config.model import (
    ConvolutionalConfig,
    ConvolutionalLmConfig,
    DecoderOnlyConfig,
    ModelConfig,
    RecurrentConfig,
    RecurrentLmConfig,
    TransformerConfig,
)
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.data.text_batch import TextInputs
from ds_seq.models import build_model
from ds_seq.models.stack import Stack, SubLayer, TransformerLayer
from ds_seq.modules.body import Context

VOCAB, WIDTH, HEADS = 40, 32, 4
LIMIT = 1e-5
_SIZES: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "num_heads": HEADS,
    "ffn_dim": 48,
    "dropout": 0.0,
    "max_positions": 64,
}


_OTHERS: Mapping[str, Any] = {
    "convolutional": ConvolutionalConfig,
    "convolutional_lm": ConvolutionalLmConfig,
    "recurrent": RecurrentConfig,
    "recurrent_lm": RecurrentLmConfig,
}
"""Models that are no Transformer."""


class Part(NamedTuple):
    """A part of one of our tensors: a tensor of theirs times a factor."""

    name: str
    factor: float = 1.0
    skip: int = 0
    """Rows of theirs that are left out, of positions before the first."""
    end: int | None = None
    """The row of theirs before which a part ends."""
    last_first: bool = False
    """Whether their last dimension is our first, of kernels."""
    columns: slice = slice(None)
    """Columns of theirs that are taken, of matrices."""


Names = dict[str, list[Part]]
"""Ours by name -> parts, joined along the first dimension. Biases that are not listed are zero."""
Cases = Mapping[str, tuple[dict[str, Any], Names]]
"""Fields of `model`, and where its weights come from, by name of the case."""


def linear(ours: str, *theirs: str, bias: bool, factors: Sequence[float] = ()) -> Names:
    """Return the names of a map that is made of several of theirs."""
    scales = factors or [1.0] * len(theirs)
    kinds = ("weight", "bias") if bias else ("weight",)
    return {
        f"{ours}.{kind}": [
            Part(f"{name}.{kind}", s) for name, s in zip(theirs, scales, strict=True)
        ]
        for kind in kinds
    }


def norm(ours: str, theirs: str, bias: bool) -> Names:
    """Return the names of a norm."""
    return linear(ours, theirs, bias=bias)


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


def joined_parts(theirs: dict[str, Tensor], parts: list[Part], invert: bool) -> Tensor:
    """Return a tensor of ours from theirs; with `invert`, a gradient."""
    joined = []
    for part in parts:
        tensor = theirs[part.name][part.skip : part.end][..., part.columns]
        tensor = tensor.movedim(-1, 0) if part.last_first else tensor
        joined.append(tensor * (1.0 / part.factor if invert else part.factor))
    return torch.cat(joined)


def compare(cases: Cases, case: str, tensors: dict[str, Tensor]) -> tuple[float, float]:
    """Return the largest error of the outputs and of all gradients, relative to their largest."""
    section, names = cases[case]
    cfg: ModelConfig
    if section.get("name") in _OTHERS:
        cfg = _OTHERS[section["name"]].model_validate(section)
    elif section.get("name") == "decoder_only":
        sizes = {key: value for key, value in _SIZES.items() if key != "encoder_layers"}
        cfg = DecoderOnlyConfig.model_validate({**sizes, **section})
    else:
        cfg = TransformerConfig.model_validate({**_SIZES, **section})
    model: Any = build_model(cfg, VOCAB, 1, 0, seed=1).double().eval()
    if cfg.characters is not None:  # as in the dictionary of `make_dictionary`
        pieces = [f"piece{number}" for number in range(VOCAB)]
        model.target_embedding.read_pieces(pieces, pad=1, eos=2, unk=3, bos=0)
    values, weights, gradients = (
        part_of(tensors, case, kind) for kind in ("values", "weights", "gradients")
    )
    is_text = cfg.stacks == ("decoder",)
    is_whole = "source" in values or is_text
    is_encoder = "splits" in values
    part = model if is_whole else model.encoder if is_encoder else _decoder_alone(model)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if name in names:
                parameter.copy_(
                    joined_parts(weights, names[name], invert=False).reshape(parameter.shape)
                )
            else:
                assert name.endswith("bias"), f"{case}: {name} has no counterpart"
                parameter.zero_()
    if is_text:
        text, mask = values["target"], values["target_mask"]
        output = part(TextInputs(text, mask, mask, int(mask.sum()))).logits
    elif is_whole:
        mask = values["target_mask"]
        sides = (values["source"], values["source_mask"], values["target"], mask)
        output = part(Seq2SeqInputs(*sides, num_targets=int(mask.sum()))).logits
    else:
        context = Context()
        if is_encoder:
            sets = torch.arange(values["x"].size(1)) >= values["splits"][:, None]
            context = Context(ways=part.find_ways(sets.long()))
        output = part(values["x"], context).hidden
    (output * values["factors"]).sum().backward()
    ours = {name: weight.grad for name, weight in part.named_parameters() if name in names}
    theirs = {name: joined_parts(gradients, parts, invert=True) for name, parts in names.items()}
    return differences(output, values["output"], ours, theirs)


def part_of(tensors: Mapping[str, Tensor], case: str, kind: str) -> dict[str, Tensor]:
    """Return the tensors of a case that are `values`, `weights` or `gradients`, by name."""
    start = f"{case}/{kind}/"
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def differences(
    output: Tensor,
    expected: Tensor,
    gradients: Mapping[str, Tensor | None],
    theirs: Mapping[str, Tensor],
) -> tuple[float, float]:
    """Return the largest error of an output and of all gradients, relative to their largest.

    Args:
        output: our output.
        expected: the peer's.
        gradients: our gradients by name.
        theirs: the peer's by our names.
    """
    largest, worst = 0.0, 0.0
    for name, wanted in theirs.items():
        found = gradients[name]
        assert found is not None, name
        largest = max(largest, float(wanted.abs().max()))
        worst = max(worst, float((found - wanted.reshape(found.shape)).abs().max()))
    return _relative(output, expected), worst / largest


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


def report(
    cases: Mapping[str, Any],
    python: str,
    side: Path,
    *options: str,
    check: Callable[[Any, str, dict[str, Tensor]], tuple[float, float]] = compare,
) -> int:
    """Print the errors of all cases; return 1 if one is above the limit.

    Args:
        cases: the cases.
        python: interpreter that has the peer.
        side: script of the peer's side; prints its version as JSON.
        *options: further arguments of the script.
        check: compares one case.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "theirs.safetensors"
        done = subprocess.run(
            [python, str(side), str(out), *options], check=True, capture_output=True
        )
        versions = json.loads(done.stdout.splitlines()[-1])
        tensors = load_file(out)
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{shown}, torch {torch.__version__}, float64")
    print(f"{'case':<24}{'output':>10}{'gradients':>12}")
    worst = 0.0
    for case in cases:
        errors = check(cases, case, tensors)
        worst = max(worst, *errors)
        print(f"{case:<24}{errors[0]:>10.1e}{errors[1]:>12.1e}")
    print(f"largest error, relative to the largest value: {worst:.1e}; limit {LIMIT:.0e}")
    return int(worst > LIMIT)


def parser_of(description: str | None, package: str) -> argparse.ArgumentParser:
    """Return the parser of a comparison with a peer.

    Args:
        description: docstring of the script.
        package: what the peer's interpreter must have.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help=f"interpreter that has {package}")
    return parser
