"""The stacks of a model: how wide and how deep they are, and what all their layers share."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ds_seq.config.base import Config, PositiveInt, Probability
from ds_seq.names import STACKS, Stack


class StackFields(Config):
    """Width and depth."""

    stacks: ClassVar[tuple[Stack, ...]] = STACKS
    """The stacks that the model has."""

    d_model: PositiveInt = Field(default=512, description="Width of the model.")
    encoder_layers: PositiveInt = Field(default=6, description="Layers of the encoder.")
    decoder_layers: PositiveInt = Field(default=6, description="Layers of the decoder.")
    dropout: Probability = Field(
        default=0.1, description="Dropout on embeddings and on the output of each sub-layer."
    )
    activation_checkpointing: bool = Field(
        default=False, description="Recompute each layer in the backward pass: less memory, slower."
    )

    def layers_of(self, stack: Stack) -> int:
        """The number of layers of ``stack``."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers
