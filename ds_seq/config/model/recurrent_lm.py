"""The language model of LSTM layers: its options and its number of parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ds_seq.config.base import FieldErrors
from ds_seq.config.model.language_model import LanguageModelFields
from ds_seq.config.model.lstm_decoder import LstmDecoderFields
from ds_seq.config.model.section import Flops, ModelSize
from ds_seq.names import Stack, TextSharing


class RecurrentLmConfig(LanguageModelFields, LstmDecoderFields):
    """A decoder of LSTM layers without a source, for `task: language_modeling`."""

    name: Literal["recurrent_lm"] = Field(description="Selects this model.")
    share_embeddings: TextSharing = Field(
        default="all",
        description="Whether input and output have one table of embeddings: `all` or `none`.",
    )

    @model_validator(mode="after")
    def _check_widths(self) -> RecurrentLmConfig:
        width = self.decoder_hidden_dim
        errors = self.adaptive_errors(width, self.share_embeddings, self.name)
        if self.adaptive is None:
            errors += self.sharing_errors()
        elif self.output_bias:
            errors.append(("output_bias", "adaptive softmax has no biases; use false"))
        if errors:
            raise FieldErrors(errors)
        return self

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return self.decoder_layers if stack == "decoder" else 0

    @property
    def maps_output(self) -> bool:
        """See `LstmDecoderFields`; adaptive softmax takes the states as they are."""
        return self.adaptive is None and super().maps_output

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize:
        """Count the parameters without building the model."""
        total = self.layer_weights() + self.layer_biases()
        if self.adaptive is None:
            total += self.target_table_params(vocab_size)
        else:
            total += vocab_size * self.decoder_embedding_dim
            total += self.adaptive.output_params(self.decoder_hidden_dim, vocab_size, tied=False)
        return ModelSize(total, total)

    def forward_flops(self, vocab_size: int) -> Flops:
        """Return the operations of a forward pass."""
        scores: float = self.output_dim * vocab_size
        if self.adaptive is not None:
            _, scores = self.adaptive.expected_weights(self.decoder_hidden_dim, vocab_size)
        return Flops(0, 2 * (self.layer_weights() + scores), 0, 0, 0)
