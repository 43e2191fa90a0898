"""The `model` section: one of ours, or one from outside."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import ExternalName, plugin_tag
from ds_seq.config.model.transformer import TransformerConfig, TransformerFields


class ExternalModelConfig(TransformerFields):
    """A model that lives outside ds_seq; takes all options of the Transformer as well.

    Its builder decides which of them it reads. What the rest of the system asks of it is
    `max_positions`, `moe` and the depth of the stacks, so that these alone have to be true.
    """

    name: ExternalName = Field(
        description="`package.module:Name` of a builder; it is called with the whole section."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Free-form options for that builder."
    )

    def num_params(self, vocab_size: int) -> None:
        """Nobody knows before it is built."""


ModelConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[ExternalModelConfig, Tag("external")],
    Discriminator(plugin_tag("transformer")),
]
