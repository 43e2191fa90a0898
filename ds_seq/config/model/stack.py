"""The stacks of a model: width, depth, and settings that all layers share."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ds_seq.config.base import Config, PositiveInt, Probability
from ds_seq.names import STACKS, Stack


class StackFields(Config):
    """Width and depth of the stacks."""

    stacks: ClassVar[tuple[Stack, ...]] = STACKS
    """The stacks of the model."""

    d_model: PositiveInt = Field(default=512, description="Width of the model.")
    encoder_layers: PositiveInt = Field(default=6, description="Number of encoder layers.")
    decoder_layers: PositiveInt = Field(default=6, description="Number of decoder layers.")
    dropout: Probability = Field(
        default=0.1, description="Dropout on embeddings and on the output of each sub-layer."
    )
    activation_checkpointing: bool = Field(
        default=False, description="Recompute each layer in the backward pass: less memory, slower."
    )

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers
