"""The `model` section: a built-in model, one of transformers, or an external one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import ExternalName, plugin_tag
from ds_seq.config.model.convolutional import ConvolutionalConfig
from ds_seq.config.model.convolutional_lm import ConvolutionalLmConfig
from ds_seq.config.model.decoder_only import DecoderOnlyConfig
from ds_seq.config.model.encoder_only import EncoderOnlyConfig
from ds_seq.config.model.recurrent import RecurrentConfig
from ds_seq.config.model.recurrent_lm import RecurrentLmConfig
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


class HuggingFaceModelConfig(TransformerFields):
    """A folder that `save_pretrained` of transformers wrote: model, vocabulary and first weights.

    `ds_seq.config.load` replaces the section by that of the Transformer that the folder describes.
    Options that fit other weights can be given besides it; see `ds_seq.config.huggingface.expand`.
    """

    name: Literal["huggingface"] = Field(description="Selects a folder of transformers.")
    path: str = Field(
        description="The folder; its vocabulary becomes `data.vocab`, its weights "
        "`train.init_from`."
    )

    def field_errors(self) -> list[tuple[str, str]]:
        """Refuse a section that has not been replaced."""
        return [("name", "huggingface is read by `ds_seq.config.load` only; load the file with it")]

    def num_params(self, vocab_size: int, source_vocab_size: int | None = None) -> None:
        """Return None: the folder has not been read."""


ModelConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[RecurrentConfig, Tag("recurrent")]
    | Annotated[RecurrentLmConfig, Tag("recurrent_lm")]
    | Annotated[DecoderOnlyConfig, Tag("decoder_only")]
    | Annotated[EncoderOnlyConfig, Tag("encoder_only")]
    | Annotated[HuggingFaceModelConfig, Tag("huggingface")]
    | Annotated[ConvolutionalConfig, Tag("convolutional")]
    | Annotated[ConvolutionalLmConfig, Tag("convolutional_lm")]
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
        f"{where}: {model.name} has no Transformer layers to choose, copy or change; only "
        "transformer, decoder_only and encoder_only have"
    )
