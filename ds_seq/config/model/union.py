"""The `model` section: a built-in model or an external one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import ExternalName, plugin_tag
from ds_seq.config.model.recurrent import RecurrentConfig
from ds_seq.config.model.transformer import TransformerConfig, TransformerFields
from ds_seq.errors import UserError


class ExternalModelConfig(TransformerFields):
    """A model from outside ds_seq; accepts all options of the Transformer.

    Its builder decides which of them it reads. The rest of the system reads only `max_positions`,
    `moe` and the depth of the stacks, so only these have to be accurate.
    """

    name: ExternalName = Field(
        description="`package.module:Name` of a builder, which is called with the whole section."
    )
    options: dict[str, Any] = Field(default={}, description="Free-form options of the builder.")

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> None:
        """Return None: the size is unknown before the model is built."""


ModelConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[RecurrentConfig, Tag("recurrent")]
    | Annotated[ExternalModelConfig, Tag("external")],
    Discriminator(plugin_tag("transformer")),
]


def with_layers(model: ModelConfig, where: str = "model.name") -> TransformerFields:
    """Return the section of a model whose Transformer layers are to be chosen or changed.

    Args:
        model: the section.
        where: what names the model, for messages.

    Raises:
        UserError: the model is not made of Transformer layers.
    """
    if isinstance(model, TransformerFields):
        return model
    raise UserError(
        f"{where}: {model.name} has no Transformer layers to choose, copy or change; only name: "
        "transformer has"
    )
