"""The encoder-only Transformer: the encoder's axes, and a projection of hidden tokens."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ds_seq.config.model.decoder_only import OneStackConfig
from ds_seq.config.model.mixer import AttentionMixerConfig
from ds_seq.names import Stack


class EncoderOnlyConfig(OneStackConfig):
    """An encoder without decoder, for `task: masked_language_modeling`."""

    stacks: ClassVar[tuple[Stack, ...]] = ("encoder",)
    decoder_layers: ClassVar[int] = 0  # type: ignore[misc]
    decoder_repeats: ClassVar[int] = 0  # type: ignore[misc]
    decoder_mixer: ClassVar[Any] = AttentionMixerConfig.model_construct()  # type: ignore[misc]

    name: Literal["encoder_only"] = Field(  # type: ignore[assignment]
        description="Selects this model."
    )
    lm_head: Literal["linear", "dense"] = Field(
        default="linear",
        description="What scores a state: `linear`, the projection to the vocabulary; `dense`, a "
        "map of width `d_model`, the activation of the feed-forwards and a norm in front of it, as "
        "in BERT and RoBERTa, whose `output_bias` is true.",
    )

    @property
    def has_dense_head(self) -> bool:
        """See `TransformerConfig`."""
        return self.lm_head == "dense"

    def field_errors(self) -> list[tuple[str, str]]:
        """Return incompatible settings as (field, message) pairs."""
        errors = super().field_errors()
        if self.has_dense_head and self.is_gated:
            message = f"dense has one map, and no gate for model.activation {self.activation}; use "
            errors.append(("lm_head", f"{message}linear, or an activation such as gelu"))
        return errors
