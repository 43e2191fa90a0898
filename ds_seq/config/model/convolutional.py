"""The encoder-decoder of gated convolutions: its options and its number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import FieldErrors
from ds_seq.config.model.gated import (
    GatedFields,
    Layers,
    LayerSize,
    layer_errors,
    layer_sizes,
    map_sizes,
)
from ds_seq.config.model.section import Flops, ModelSize, known_preset, with_preset
from ds_seq.config.model.stack import Width
from ds_seq.names import STACKS, AttentionKind, EmbeddingSharing, Stack

_SMALL, _RO = [[256, 3]], [[512, 3]] * 20
_DE = [[512, 3]] * 9 + [[1024, 3]] * 4 + [[2048, 1]] * 2
_FR = [[512, 3]] * 6 + [[768, 3]] * 4 + [[1024, 3]] * 3 + [[2048, 1], [4096, 1]]


def _wmt(layers: list[list[int]]) -> dict[str, Any]:
    return {
        "embedding_dim": 768,
        "output_dim": 512,
        "encoder_convolutions": layers,
        "decoder_convolutions": layers,
    }


CONVOLUTIONAL_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fconv": {},
    "fconv_iwslt_de_en": {
        "embedding_dim": 256,
        "encoder_convolutions": _SMALL * 4,
        "decoder_convolutions": _SMALL * 3,
    },
    "fconv_wmt_en_ro": {"output_dim": 512},
    "fconv_wmt_en_de": _wmt(_DE),
    "fconv_wmt_en_fr": _wmt(_FR),
}
"""Values of the architectures of fairseq; whether embeddings are shared is no part of them."""


class ConvolutionalConfig(GatedFields):
    """An encoder-decoder of gated convolutions with attention in each decoder layer (Gehring et al.
    2017)."""

    name: Literal["convolutional"] = Field(description="Selects this model.")
    preset: str | None = Field(
        default=None,
        description="Architecture of fairseq for fields that are not given: "
        + ", ".join(f"`{name}`" for name in CONVOLUTIONAL_PRESETS)
        + ".",
    )
    embedding_dim: Width = Field(default=512, description="Width of embeddings and of attention.")
    encoder_convolutions: Layers = Field(
        default=_RO,
        description="Layers of the encoder, each as `[channels, tokens under its kernel]`. A third "
        "number says whose input is added: 1 (the default) for that of the layer itself, 2 for "
        "that of the layer before it; 0 for none.",
    )
    decoder_convolutions: Layers = Field(
        default=_RO, description="Layers of the decoder, as `encoder_convolutions`."
    )
    output_dim: Width = Field(
        default=256, description="Width before the projection to the vocabulary."
    )
    share_embeddings: EmbeddingSharing = Field(
        default="none",
        description="Shared embedding tables: `none`; `decoder`, its input and output; `inputs` of "
        "encoder and decoder; `all` three. A shared output needs `output_dim` to be "
        "`embedding_dim`.",
    )
    max_positions: Width = Field(
        default=1024, description="Longest sequence of either side, in tokens."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        return with_preset(section, CONVOLUTIONAL_PRESETS)

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        return known_preset(preset, CONVOLUTIONAL_PRESETS, "of a convolutional model")

    @model_validator(mode="after")
    def _check_fields(self) -> ConvolutionalConfig:
        errors: list[tuple[str, str]] = []
        for stack in STACKS:
            errors += layer_errors(f"{stack}_convolutions", self._given(stack))
        if self.shares_output and self.output_dim != self.embedding_dim:
            message = f"{self.share_embeddings}, but embedding_dim is {self.embedding_dim} and "
            message += f"output_dim {self.output_dim}; give both one width, or share less"
            errors.append(("share_embeddings", message))
        if errors:
            raise FieldErrors(errors)
        return self

    def _given(self, stack: Stack) -> list[list[int]]:
        return self.encoder_convolutions if stack == "encoder" else self.decoder_convolutions

    def convolutions_of(self, stack: Stack) -> list[LayerSize]:
        """Return the layers of `stack`."""
        return layer_sizes(self._given(stack))

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return len(self._given(stack))

    @property
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        """Each decoder layer attends to the source."""
        return ("cross",)

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize:
        """Count the parameters without building the model."""
        width = self.embedding_dim
        tables = (
            vocab_size if self.shares_inputs else vocab_size + (source_vocab_size or vocab_size)
        )
        total = tables * width + 2 * self.max_positions * width
        total += sum(self.map_size(*sizes) for sizes in self.layer_maps())
        total += vocab_size if self.shares_output else self.map_size(self.output_dim, vocab_size)
        return ModelSize(total, total)

    def forward_flops(self, vocab_size: int) -> Flops:
        """Return the operations of a forward pass."""
        target = sum(inputs * outputs for inputs, outputs in self._decoder_maps())
        return Flops(
            2 * sum(inputs * outputs for inputs, outputs in self._maps("encoder")),
            2 * (target + self.output_dim * vocab_size),
            0,
            0,
            2 * 2 * self.embedding_dim * self.layers_of("decoder"),
        )

    def layer_maps(self) -> Sequence[tuple[int, int]]:
        """Return inputs and outputs of all maps but that to the vocabulary."""
        return [*self._maps("encoder"), *self._decoder_maps()]

    def _maps(self, stack: Stack) -> Sequence[tuple[int, int]]:
        """Return inputs and outputs of the maps of a stack, without those of attention."""
        layers, width = self.convolutions_of(stack), self.embedding_dim
        last = width if stack == "encoder" else self.output_dim
        return [*map_sizes(width, layers), (layers[-1].channels, last)]

    def _decoder_maps(self) -> Sequence[tuple[int, int]]:
        """Return inputs and outputs of all maps of the decoder but that to the vocabulary."""
        layers, width = self.convolutions_of("decoder"), self.embedding_dim
        attention = [
            pair for each in layers for pair in ((each.channels, width), (width, each.channels))
        ]
        return [*self._maps("decoder"), *attention]
