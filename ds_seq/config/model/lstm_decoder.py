"""What LSTM decoders have in common, whether they have a source or are language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from ds_seq.config.base import Probability
from ds_seq.config.model.embedding import SharingFields
from ds_seq.config.model.section import OtherModel
from ds_seq.config.model.stack import Depth, Width
from ds_seq.names import Stack

LSTM_GATES = 4  # input, forget, candidate, output


class LstmDecoderFields(SharingFields, OtherModel):
    """LSTM layers that predict each token from those before it, with embeddings and projection."""

    shapeless: ClassVar[tuple[str, ...]] = ("residual",)

    decoder_embedding_dim: Width = Field(
        default=512, description="Width of the decoder's embeddings."
    )
    decoder_hidden_dim: Width = Field(default=512, description="Width of the decoder's states.")
    output_dim: Width = Field(
        default=512,
        description="Width before the projection to the vocabulary; a matrix maps "
        "`decoder_hidden_dim` to it if they differ.",
    )
    decoder_layers: Depth = Field(default=1, description="Number of decoder layers.")
    residual: bool = Field(
        default=False,
        description="Add the input of a layer to its output, in all layers but the first.",
    )
    dropout: Probability = Field(default=0.1, description="Dropout where no other is given.")
    decoder_dropout_in: Probability | None = Field(
        default=None, description="Dropout on the decoder's embeddings; null: `dropout`."
    )
    decoder_dropout_out: Probability | None = Field(
        default=None,
        description="Dropout on the output of decoder layers, and of the attention if there is "
        "one; null: `dropout`.",
    )
    output_bias: bool = Field(default=False, description="A bias of the scores of the vocabulary.")
    max_positions: Width = Field(default=1024, description="Longest sequence, in tokens.")

    def sharing_errors(self) -> list[tuple[str, str]]:
        """Return why input and output cannot have one table, as (field, message) pairs."""
        width = self.decoder_embedding_dim
        if not self.shares_output or self.output_dim == width:
            return []
        message = f"{self.share_embeddings}, but decoder_embedding_dim is {width} and output_dim "
        return [("share_embeddings", f"{message}{self.output_dim}; give both one width, or share "
                 "less")]  # fmt: skip

    def dropout_of(self, stack: Stack, place: Literal["in", "out"]) -> float:
        """Return the dropout before or after the layers of a stack."""
        given: float | None = vars(self)[f"{stack}_dropout_{place}"]
        return self.dropout if given is None else given

    @property
    def state_width(self) -> None:
        """The states of its layers, of widths of their own, are not returned."""
        return None

    @property
    def maps_output(self) -> bool:
        """Whether a matrix maps the states to `output_dim`."""
        return self.decoder_hidden_dim != self.output_dim

    def target_table_params(self, vocab_size: int) -> int:
        """Count the parameters of the tables of the target's tokens, as input and as output."""
        total = vocab_size * self.decoder_embedding_dim
        if not self.shares_output:
            total += vocab_size * self.output_dim
        return total + (vocab_size if self.output_bias else 0)

    def layer_weights(self, fed: int = 0) -> int:
        """Return the weights of the layers and of the map to `output_dim`, without biases.

        Args:
            fed: width of what the first layer reads besides the embedding.
        """
        hidden = self.decoder_hidden_dim
        inputs = [self.decoder_embedding_dim + fed, *[hidden] * (self.decoder_layers - 1)]
        mapped = hidden * self.output_dim if self.maps_output else 0
        return lstm_weights(inputs, hidden) + mapped

    def layer_biases(self) -> int:
        """Return the biases of the layers, two for each gate, and of the map to `output_dim`."""
        hidden = self.decoder_hidden_dim
        mapped = self.output_dim if self.maps_output else 0
        return 2 * LSTM_GATES * self.decoder_layers * hidden + mapped


def lstm_weights(inputs: Sequence[int], hidden: int) -> int:
    """Return the weights of LSTM layers of one direction, given the widths of their inputs."""
    return sum(LSTM_GATES * hidden * (width + hidden) for width in inputs)
