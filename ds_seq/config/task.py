"""The `task` section: what the model learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import Config, ExternalConfig, all_defaults, plugin_tag
from ds_seq.config.noise import NoiseConfig
from ds_seq.names import SideChoice


class TranslationConfig(Config):
    """Text to text: translation between two languages, or summarization within one."""

    name: Literal["translation"] = Field(default="translation", description="Selects this task.")
    rouge_stemmer: bool = Field(
        default=True,
        description="Whether ROUGE compares English words without their endings, as in published "
        "scores.",
    )


class DenoisingConfig(Config):
    """Pre-training of an encoder-decoder, which restores noisy text."""

    name: Literal["denoising"] = Field(description="Selects this task.")
    noise: NoiseConfig = Field(
        default_factory=all_defaults,
        description="The noise: `bart`, `mbart` or `t5`, with the settings of their papers, or one "
        "of these names with other settings.",
    )
    side: SideChoice | None = Field(
        default=None,
        description="Side of pairs whose text is read; null for text of one side "
        "(`data.language`).",
    )


TaskConfig = Annotated[
    Annotated[TranslationConfig, Tag("translation")]
    | Annotated[DenoisingConfig, Tag("denoising")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("translation")),
]
