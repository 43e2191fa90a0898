"""The `task` section: what the model learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import Config, ExternalConfig, plugin_tag


class TranslationConfig(Config):
    """Text to text: translation between two languages, or summarization within one."""

    name: Literal["translation"] = Field(default="translation", description="Selects this task.")
    rouge_stemmer: bool = Field(
        default=True,
        description="Whether ROUGE compares English words without their endings, as in published "
        "scores.",
    )


TaskConfig = Annotated[
    Annotated[TranslationConfig, Tag("translation")] | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("translation")),
]
