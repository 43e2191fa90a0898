"""The stacks of a model: width, depth, and settings that all layers share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ds_seq.config.base import Probability
from ds_seq.config.model.section import ModelSection
from ds_seq.names import Stack

# Bounds far above every published model: beyond them a number is a mistake, or a file was made to
# exhaust the memory of whoever opens it.
Depth = Annotated[int, Field(ge=1, le=1000)]
Width = Annotated[int, Field(ge=1, le=1_000_000)]


class StackFields(ModelSection):
    """Width and depth of the stacks."""

    d_model: Width = Field(default=512, description="Width of the model.")
    encoder_layers: Depth = Field(default=6, description="Number of encoder layers.")
    decoder_layers: Depth = Field(default=6, description="Number of decoder layers.")
    encoder_repeats: Depth = Field(
        default=1,
        description="How often all encoder layers are called one after the other, with the same "
        "parameters (recurrent stacking).",
    )
    decoder_repeats: Depth = Field(
        default=1, description="How often all decoder layers are called, as `encoder_repeats`."
    )
    dropout: Probability = Field(
        default=0.1, description="Dropout on embeddings and on the output of each sub-layer."
    )
    activation_checkpointing: bool = Field(
        default=False, description="Recompute each layer in the backward pass: less memory, slower."
    )

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    def repeats_of(self, stack: Stack) -> int:
        """Return how often the layers of `stack` are called."""
        return self.encoder_repeats if stack == "encoder" else self.decoder_repeats

    def calls_of(self, stack: Stack) -> int:
        """Return how many calls of layers a token passes through in `stack`."""
        return self.layers_of(stack) * self.repeats_of(stack)
