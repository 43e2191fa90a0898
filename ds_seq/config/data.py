"""The `data` section: raw text, cleaning, subword vocabulary and shards."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    FieldErrors,
    PositiveInt,
    all_defaults,
    plugin_tag,
)
from ds_seq.config.clean import CleanConfig
from ds_seq.config.text_files import RawConfig
from ds_seq.config.vocab import VocabConfig


class ShardsConfig(Config):
    """The shards that `ds-seq prepare` writes."""

    name: Literal["shards"] = Field(default="shards", description="Selects this source.")


SourceConfig = Annotated[
    Annotated[ShardsConfig, Tag("shards")] | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("shards")),
]


Language = Annotated[str, StringConstraints(pattern=r"^[^\s/\\.][^\s/\\]*$")]
"""A language code; it ends the names of files, so it must not lead into another folder."""


class DataConfig(Config):
    """Languages, raw files and the folder of binarized shards."""

    source_lang: Language = Field(description="Language code of the source side.")
    target_lang: Language = Field(description="Language code of the target side.")
    dir: str = Field(
        min_length=1, description="Folder of the shards and the vocabulary (`vocab.model`)."
    )
    source: SourceConfig = Field(
        default_factory=all_defaults, description="Source of the training examples."
    )
    raw: RawConfig = Field(default_factory=all_defaults, description="Raw parallel text files.")
    max_source_length: int = Field(
        default=256,
        ge=2,
        description="Maximum source length in subwords, end symbol included; longer pairs are "
        "skipped.",
    )
    max_target_length: int = Field(
        default=256,
        ge=2,
        description="Maximum target length in subwords, end symbol included; longer pairs are "
        "skipped.",
    )
    clean: CleanConfig = Field(default_factory=all_defaults, description="Cleaning of raw text.")
    vocab: VocabConfig = Field(default_factory=all_defaults, description="Subword vocabulary.")
    language_tags: list[str] | None = Field(
        default=None,
        description="Those of `vocab.user_symbols` that name a language at the start of a source; "
        "a source with none of them is reported. Null: those that look like tags, such as "
        "`<2de>`, `__de__`, `>>deu<<` and `de_DE`.",
    )
    shard_size: PositiveInt = Field(default=1_000_000, description="Sentence pairs per shard.")
    workers: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Number of binarization processes; null uses all CPU cores."
    )

    @model_validator(mode="after")
    def _check_languages(self) -> DataConfig:
        # the files of clean text are named after the languages
        if self.source_lang == self.target_lang and isinstance(self.source, ShardsConfig):
            message = f"it and source_lang are both {self.target_lang!r}; give two names"
            raise FieldErrors([("target_lang", message)])
        return self

    @model_validator(mode="after")
    def _check_symbols(self) -> DataConfig:
        for tag in self.language_tags or ():
            if tag not in self.vocab.user_symbols:
                raise FieldErrors([("language_tags", f"{tag!r} is not in vocab.user_symbols")])
        name = "NFKC" if self.clean.nfkc else self.clean.unicode_form
        if name is None:
            return self
        key = "nfkc" if self.clean.nfkc else "unicode_form"
        for symbol in self.vocab.user_symbols:
            if (form := unicodedata.normalize(name, symbol)) != symbol:
                message = f"data.clean.{key} turns {symbol} into {form}; list it in that form"
                raise FieldErrors([("vocab.user_symbols", message)])
        return self
