"""Tensors of fairseq's lightconv and fconv as those of our models.

Shapes: H heads, S size of a kernel, I input channels, O output channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ds_seq.errors import UserError
from ds_seq.runs.formats.fairseq.names import Converter

_ENCODER = {
    "self_attention_residual.norm": "layer_norm1",
    "feed_forward_residual.norm": "layer_norm2",
}
_DECODER = {"self_attention_residual.norm": "conv_layer_norm"}
_BOTH = {"self_attention.input": "linear1", "self_attention.output": "linear2"}
_KERNELS = ("conv.weight_linear.weight", "conv.weight")


class ConvolutionConverter(Converter):
    """Makes the tensors of a Transformer whose self-attention is a convolution."""

    def _make(self, name: str, shape: torch.Size) -> Tensor:
        match = re.fullmatch(r"((encoder|decoder)\.layers\.\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            return super()._make(name, shape)
        place, stack, module, kind = match.groups()
        if module == "self_attention.kernels":
            kernels = self._need([f"{place}.{each}" for each in _KERNELS], name)
            return kernels.reshape(shape) if kernels.numel() == shape.numel() else kernels
        names = _BOTH | (_ENCODER if stack == "encoder" else _DECODER)
        if module in names:
            return self._need([f"{place}.{names[module]}.{kind}"], name)
        return super()._make(name, shape)


class GatedConverter(Converter):
    """Makes the tensors of a model of gated convolutions; weight norm stays as it is."""

    _MAPS: Mapping[str, str] = {
        r"(encoder|decoder)\.input": r"\1.fc1",
        r"(encoder|decoder)\.output": r"\1.fc2",
        r"(encoder|decoder)\.layers\.(\d+)\.convolution\.map": r"\1.convolutions.\2",
        r"(encoder|decoder)\.layers\.(\d+)\.residual": r"\1.projections.\2",
        r"decoder\.layers\.(\d+)\.attention\.query": r"decoder.attention.\1.in_projection",
        r"decoder\.layers\.(\d+)\.attention\.output": r"decoder.attention.\1.out_projection",
        r"output|target_embedding": "decoder.fc3",
    }
    _KINDS: Mapping[str, str] = {"weight": "weight_v", "length": "weight_g", "bias": "bias"}

    def _make(self, name: str, shape: torch.Size) -> Tensor:
        if re.fullmatch(r"(source|target)_embedding\.weight", name):
            return self._embedding(name)
        if name.endswith(".positions.weight"):
            return self._positions(name, shape)
        module, _, kind = name.rpartition(".")
        for pattern, theirs in self._MAPS.items():
            if re.fullmatch(pattern, module):
                value = self._need(
                    [f"{re.sub(f'^(?:{pattern})$', theirs, module)}.{self._KINDS[kind]}"], name
                )
                return _kernel_first(value, kind)
        raise UserError(f"{self._path}: there is no tensor of fairseq for {name}")


def _kernel_first(value: Tensor, kind: str) -> Tensor:
    """Return a kernel (S, I, O) as the weight (O, S I) of a map, and lengths as (O,)."""
    if kind == "length":
        return value.flatten()
    return value.permute(2, 0, 1).flatten(1) if value.dim() == 3 else value


def gated_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights of an fconv checkpoint have the form that is read.

    Raises:
        UserError: it was written before lengths belonged to output channels.
    """
    version = state.get("decoder.version")
    if version is None or float(version.flatten()[0]) < 2:
        raise UserError(
            f"{path}: was written by a fairseq before 0.5, whose weight norm is another one; load "
            "and save it with a later fairseq first"
        )
