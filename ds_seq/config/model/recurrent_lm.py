"""The language model of LSTM layers: its options and its number of parameters."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ds_seq.config.base import FieldErrors
from ds_seq.config.model.lstm_decoder import LstmDecoderFields
from ds_seq.config.model.section import Flops, ModelSize
from ds_seq.names import AttentionKind, Stack


class RecurrentLmConfig(LstmDecoderFields):
    """A decoder of LSTM layers without a source, for `task: language_modeling`."""

    stacks: ClassVar[tuple[Stack, ...]] = ("decoder",)

    name: Literal["recurrent_lm"] = Field(description="Selects this model.")
    share_embeddings: Literal["all", "none"] = Field(
        default="all",
        description="Whether input and output have one table of embeddings: `all` or `none`.",
    )

    @model_validator(mode="after")
    def _check_widths(self) -> RecurrentLmConfig:
        errors = self.sharing_errors()
        if errors:
            raise FieldErrors(errors)
        return self

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return self.decoder_layers if stack == "decoder" else 0

    @property
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        """There is no attention."""
        return ()

    @property
    def shares_inputs(self) -> bool:
        """See `SharingFields`: there is one input."""
        return True

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize:
        """Count the parameters without building the model."""
        total = self.target_table_params(vocab_size) + self.layer_weights() + self.layer_biases()
        return ModelSize(total, total)

    def forward_flops(self, vocab_size: int) -> Flops:
        """Return the operations of a forward pass."""
        return Flops(0, 2 * (self.layer_weights() + self.output_dim * vocab_size), 0, 0, 0)
