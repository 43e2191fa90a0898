"""The language model of gated convolutions: its options and its number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
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
from ds_seq.config.model.language_model import LanguageModelFields
from ds_seq.config.model.section import Flops, ModelSize, known_preset, with_preset
from ds_seq.config.model.stack import Width
from ds_seq.names import Stack, TextSharing

_WIKITEXT = (
    [[850, 6]] * 3 + [[850, 1]] + [[850, 5]] * 4 + [[850, 1]] + [[850, 4]] * 3
    + [[1024, 4], [2048, 4]]
)  # fmt: skip


def _bottleneck(narrow: int, wide: int) -> list[list[int]]:
    """Return three layers around which there is one residual."""
    return [[narrow, 1, 0], [narrow, 5, 0], [wide, 1, 3]]


def _with_softmax(last: int, cutoffs: list[int], layers: list[list[int]]) -> dict[str, Any]:
    bands = {"cutoffs": cutoffs, "input": False}
    return {"embedding_dim": last, "decoder_convolutions": layers, "adaptive": bands}


CONVOLUTIONAL_LM_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fconv_lm": {},
    "fconv_lm_dauphin_wikitext103": _with_softmax(280, [10_000, 20_000, 200_000], _WIKITEXT),
    "fconv_lm_dauphin_gbw": _with_softmax(
        128,
        [10_000, 50_000, 200_000],
        [
            [512, 5],
            *_bottleneck(128, 512) * 3,
            *_bottleneck(512, 1024) * 3,
            *_bottleneck(1024, 2048) * 6,
            *_bottleneck(1024, 4096),
        ],
    ),
}
"""Values of the architectures of fairseq; `fconv_lm` has one softmax unless `adaptive` is given."""


class ConvolutionalLmConfig(LanguageModelFields, GatedFields):
    """A decoder of gated convolutions without a source (Dauphin et al. 2017), for
    `task: language_modeling`."""

    name: Literal["convolutional_lm"] = Field(description="Selects this model.")
    preset: str | None = Field(
        default=None,
        description="Architecture of fairseq for fields that are not given: "
        + ", ".join(f"`{name}`" for name in CONVOLUTIONAL_LM_PRESETS)
        + ".",
    )
    embedding_dim: Width = Field(
        default=128,
        description="Width of embeddings, and before the projection to the vocabulary, unless the "
        "softmax is adaptive: it takes the channels of the last layer.",
    )
    decoder_convolutions: Layers = Field(
        default=[[1268, 4]] * 13,
        description="Layers, each as `[channels, tokens under its kernel]`. A third number says "
        "whose input is added: 1 (the default) for that of the layer itself, 2 for that of the "
        "layer before it; 0 for none.",
    )
    share_embeddings: TextSharing = Field(
        default="none",
        description="Whether input and output have one table of embeddings: `all` or `none`.",
    )
    max_positions: Width = Field(
        default=1024, description="Longest text, in tokens; positions are not added."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        return with_preset(section, CONVOLUTIONAL_LM_PRESETS)

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        return known_preset(preset, CONVOLUTIONAL_LM_PRESETS, "of a convolutional language model")

    @model_validator(mode="after")
    def _check_fields(self) -> ConvolutionalLmConfig:
        errors = list(layer_errors("decoder_convolutions", self.decoder_convolutions))
        last = self.convolutions[-1].channels
        errors += self.adaptive_errors(last, self.share_embeddings, self.name)
        if errors:
            raise FieldErrors(errors)
        return self

    @property
    def convolutions(self) -> list[LayerSize]:
        """The layers."""
        return layer_sizes(self.decoder_convolutions)

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return len(self.decoder_convolutions) if stack == "decoder" else 0

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize:
        """Count the parameters without building the model."""
        total = vocab_size * self.embedding_dim
        total += sum(self.map_size(*sizes) for sizes in self.layer_maps())
        if self.adaptive is not None:
            last = self.convolutions[-1].channels
            total += self.adaptive.output_params(last, vocab_size, tied=False)
        elif self.shares_output:
            total += vocab_size
        else:
            total += self.map_size(self.embedding_dim, vocab_size)
        return ModelSize(total, total)

    def forward_flops(self, vocab_size: int) -> Flops:
        """Return the operations of a forward pass."""
        weights: float = sum(inputs * outputs for inputs, outputs in self.layer_maps())
        scores: float = self.embedding_dim * vocab_size
        if self.adaptive is not None:
            _, scores = self.adaptive.expected_weights(self.convolutions[-1].channels, vocab_size)
        return Flops(0, 2 * (weights + scores), 0, 0, 0)

    def layer_maps(self) -> list[tuple[int, int]]:
        """Return inputs and outputs of all maps but that to the vocabulary."""
        layers, width = self.convolutions, self.embedding_dim
        last = [] if self.adaptive is not None else [(layers[-1].channels, width)]
        return [*map_sizes(width, layers), *last]
