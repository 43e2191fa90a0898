"""Gated convolutions: what encoder-decoders and language models that are made of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from ds_seq.config.base import Probability
from ds_seq.config.model.embedding import SharingFields
from ds_seq.config.model.section import OtherModel

Layers = Annotated[
    list[
        Annotated[list[Annotated[int, Field(ge=0, le=10_000)]], Field(min_length=2, max_length=3)]
    ],
    Field(min_length=1, max_length=1000),
]


class LayerSize(NamedTuple):
    """One layer."""

    channels: int
    size: int
    """Number of tokens under the kernel."""
    back: int
    """Whose input is added to the output: 1 for that of the layer itself, 2 for that of the layer
    before it; 0 for none."""


class LayerMaps(NamedTuple):
    """Inputs and outputs of the maps of a layer."""

    convolution: tuple[int, int]
    residual: tuple[int, int] | None
    """Of the map before the sum, None if there is none."""


class GatedFields(SharingFields, OtherModel):
    """Layers of gated convolutions; all of their maps may have weight norm."""

    weight_norm: bool = Field(
        default=True,
        description="Maps and convolutions have a length and a direction for each output, which "
        "are learned apart (Salimans and Kingma 2016).",
    )
    dropout: Probability = Field(
        default=0.1, description="Dropout on embeddings, and on the input of each layer."
    )

    shapeless: ClassVar[tuple[str, ...]] = ()

    @property
    def state_width(self) -> None:
        """The states of its layers, which may be of different widths, are not returned."""
        return None

    def map_size(self, inputs: int, outputs: int) -> int:
        """Return the parameters of a map: weights, biases, and with `weight_norm` lengths."""
        return outputs * (inputs + (2 if self.weight_norm else 1))


def layer_sizes(layers: Sequence[Sequence[int]]) -> list[LayerSize]:
    """Return the layers of a stack; the input of a layer is added unless a list says otherwise."""
    return [LayerSize(each[0], each[1], each[2] if len(each) > 2 else 1) for each in layers]


def layer_errors(field: str, layers: Sequence[Sequence[int]]) -> Iterator[tuple[str, str]]:
    """Yield impossible layers as (field, message) pairs."""
    for number, layer in enumerate(layer_sizes(layers), start=1):
        if not layer.channels or not layer.size:
            yield field, f"layer {number} {list(layer)}: channels and kernel have at least 1"
        if layer.back > number:
            message = f"layer {number} {list(layer)}: there are only {number} inputs up to it; use "
            yield field, f"{message}a last number of at most {number}"


def stack_maps(layers: Sequence[LayerSize]) -> Iterator[LayerMaps]:
    """Yield the maps of each layer of a stack."""
    widths = [layers[0].channels]
    for channels, size, back in layers:
        added = widths[-back] if back else channels
        residual = None if added == channels else (added, channels)
        yield LayerMaps((size * widths[-1], 2 * channels), residual)
        widths.append(channels)


def map_sizes(width: int, layers: Sequence[LayerSize]) -> list[tuple[int, int]]:
    """Return inputs and outputs of all maps of a stack from embeddings of a width to its channels.

    Those of attention, and the one behind the last layer, are not among them.
    """
    sizes = [(width, layers[0].channels)]
    for convolution, residual in stack_maps(layers):
        sizes += [convolution] if residual is None else [convolution, residual]
    return sizes
