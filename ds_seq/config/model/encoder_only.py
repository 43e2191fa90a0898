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
