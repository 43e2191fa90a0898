"""The `task` section: what the model learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from ds_seq.config.base import Config, ExternalConfig, plugin_tag


class TranslationConfig(Config):
    """Translation between two languages."""

    name: Literal["translation"] = Field(default="translation", description="Selects this task.")


TaskConfig = Annotated[
    Annotated[TranslationConfig, Tag("translation")] | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("translation")),
]
