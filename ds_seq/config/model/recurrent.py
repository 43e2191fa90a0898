"""The encoder-decoder of LSTM layers with attention: its options and its number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import FieldErrors, Probability
from ds_seq.config.model.lstm_decoder import LSTM_GATES, LstmDecoderFields, lstm_weights
from ds_seq.config.model.section import Flops, ModelSize, known_preset, with_preset
from ds_seq.config.model.stack import Depth, Width
from ds_seq.names import AttentionKind, Stack

RECURRENT_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "lstm": {"bidirectional": False, "encoder_layers": 1, "decoder_layers": 1},
    "lstm_wiseman_iwslt_de_en": {
        "bidirectional": False,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_embedding_dim": 256,
        "decoder_embedding_dim": 256,
        "encoder_hidden_dim": 256,
        "decoder_hidden_dim": 256,
        "output_dim": 256,
        "encoder_dropout_in": 0.0,
        "encoder_dropout_out": 0.0,
        "decoder_dropout_in": 0.0,
    },
    "lstm_luong_wmt_en_de": {
        "bidirectional": False,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_embedding_dim": 1000,
        "decoder_embedding_dim": 1000,
        "encoder_hidden_dim": 1000,
        "decoder_hidden_dim": 1000,
        "output_dim": 1000,
        "encoder_dropout_out": 0.0,
        "decoder_dropout_out": 0.0,
    },
}
"""Values of the architectures of fairseq; whether embeddings are shared is no part of them."""


class RecurrentConfig(LstmDecoderFields):
    """An encoder-decoder of LSTM layers (Luong et al. 2015), by default with attention."""

    name: Literal["recurrent"] = Field(description="Selects this model.")
    preset: str | None = Field(
        default=None,
        description="Architecture of fairseq for fields that are not given: "
        + ", ".join(f"`{name}`" for name in RECURRENT_PRESETS)
        + ".",
    )
    encoder_embedding_dim: Width = Field(default=512, description="Width of source embeddings.")
    encoder_hidden_dim: Width = Field(
        default=512, description="Width of the states of the encoder, of each direction."
    )
    encoder_layers: Depth = Field(default=1, description="Number of encoder layers.")
    decoder_layers: Depth = Field(
        default=1,
        description="Number of decoder layers; each starts with the last state of its encoder "
        "layer, counted from the top, or with zeros if there is none.",
    )
    bidirectional: bool = Field(
        default=True, description="Encoder layers also read the source from its end."
    )
    attention: bool = Field(
        default=True,
        description="The decoder attends to the source (general dot attention of Luong et al. "
        "2015); otherwise it knows only the last states of the encoder.",
    )
    input_feeding: bool = Field(
        default=True,
        description="The result of each step, with its attention, is part of the input of the "
        "next one. Without it, training computes all steps of a layer in one call, which was 1.6 "
        "times as fast on a CPU.",
    )
    encoder_dropout_in: Probability | None = Field(
        default=None, description="Dropout on source embeddings; null: `dropout`."
    )
    encoder_dropout_out: Probability | None = Field(
        default=None, description="Dropout on the output of encoder layers; null: `dropout`."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, section: Any) -> Any:
        return with_preset(section, RECURRENT_PRESETS)

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, preset: str | None) -> str | None:
        return known_preset(preset, RECURRENT_PRESETS, "of a recurrent model")

    @model_validator(mode="after")
    def _check_widths(self) -> RecurrentConfig:
        errors = []
        source, target = self.encoder_embedding_dim, self.decoder_embedding_dim
        if self.shares_inputs and source != target:
            message = f"{self.share_embeddings}, but encoder_embedding_dim is {source} and "
            errors.append(("share_embeddings", message + f"decoder_embedding_dim {target}"))
        errors += self.sharing_errors()
        if errors:
            raise FieldErrors(errors)
        return self

    def layers_of(self, stack: Stack) -> int:
        """Return the number of layers of `stack`."""
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    @property
    def attention_maps(self) -> tuple[AttentionKind, ...]:
        """A decoder of several layers has one attention for all of them."""
        return ("cross",) if self.attention and self.decoder_layers == 1 else ()

    @property
    def source_dim(self) -> int:
        """Width of the encoded source."""
        return self.encoder_hidden_dim * (2 if self.bidirectional else 1)

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> ModelSize:
        """Count the parameters without building the model."""
        total = self.target_table_params(vocab_size)
        if not self.shares_inputs:
            total += (source_vocab_size or vocab_size) * self.encoder_embedding_dim
        total += self._encoder_weights() + self._decoder_weights() + self._source_maps()
        total += self._biases() + self._start_params()
        return ModelSize(total, total)

    def forward_flops(self, vocab_size: int) -> Flops:
        """Return the operations of a forward pass."""
        pair = 2 * self.decoder_hidden_dim if self.attention else 0
        return Flops(
            2 * (self._encoder_weights() + self._source_maps()),
            2 * (self._decoder_weights() + self.output_dim * vocab_size),
            0,
            0,
            2 * pair,
        )

    def _encoder_weights(self) -> int:
        inputs = [self.encoder_embedding_dim, *[self.source_dim] * (self.encoder_layers - 1)]
        return (2 if self.bidirectional else 1) * lstm_weights(inputs, self.encoder_hidden_dim)

    def _decoder_weights(self) -> int:
        """Return the weights that each target token multiplies, without its embeddings."""
        hidden = self.decoder_hidden_dim
        attention = hidden * hidden if self.attention else 0
        return self.layer_weights(fed=hidden if self.input_feeding else 0) + attention

    def _source_maps(self) -> int:
        """Return the weights of the keys and values of the attention, for each source token."""
        return 2 * self.decoder_hidden_dim * self.source_dim if self.attention else 0

    def _start_params(self) -> int:
        """Return the parameters that map the last states of the encoder to those of the decoder."""
        hidden = self.decoder_hidden_dim
        return 0 if self.source_dim == hidden else 2 * (self.source_dim + 1) * hidden

    def _biases(self) -> int:
        """Return the biases of the LSTM layers and of the output's map."""
        return 2 * LSTM_GATES * self.encoder_layers * self.source_dim + self.layer_biases()
