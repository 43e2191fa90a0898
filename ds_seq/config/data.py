"""The `data` section: raw text, cleaning, subword vocabulary and shards."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from ds_seq.config.base import (
    Config,
    ExternalConfig,
    FieldErrors,
    PositiveInt,
    all_defaults,
    plugin_tag,
)
from ds_seq.config.clean import CleanConfig
from ds_seq.config.text_files import RawSection
from ds_seq.config.vocab import VocabConfig


class ShardsConfig(Config):
    """The shards that `ds-seq prepare` writes."""

    name: Literal["shards"] = Field(default="shards", description="Selects this source.")


def _split_folders(value: Any) -> Any:
    return value.split(":") if isinstance(value, str) else value


class FairseqConfig(Config):
    """The output of fairseq-preprocess, read where it is."""

    name: Literal["fairseq"] = Field(description="Selects this source.")
    folders: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]], BeforeValidator(_split_folders)
    ] = Field(
        min_length=1,
        description="Its folders: a list, or a text with colons between them. All together are one "
        "epoch; validation and test data are in the first.",
    )
    languages: tuple[str, str] | None = Field(
        default=None,
        description="Source and target language in the names of its files; null: those of `data`.",
    )


SourceConfig = Annotated[
    Annotated[ShardsConfig, Tag("shards")]
    | Annotated[FairseqConfig, Tag("fairseq")]
    | Annotated[ExternalConfig, Tag("external")],
    Discriminator(plugin_tag("shards")),
]


Language = Annotated[str, StringConstraints(pattern=r"^[^\s/\\.][^\s/\\]*$")]
"""A language code; it ends the names of files, so it must not lead into another folder."""


class DataConfig(Config):
    """Languages, raw files and the folder of binarized shards."""

    source_lang: Language = Field(description="Language code of the source side.")
    target_lang: Language = Field(description="Language code of the target side.")
    dir: str = Field(
        min_length=1,
        description="Folder of the shards and the vocabulary (`vocab.model`, or "
        "`vocab.source.model` and `vocab.target.model`).",
    )
    source: SourceConfig = Field(
        default_factory=all_defaults, description="Source of the training examples."
    )
    raw: RawSection = Field(default_factory=all_defaults, description="Raw parallel text files.")
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

    @property
    def fairseq_languages(self) -> tuple[str, str]:
        """Languages in the names of the files of a source `fairseq`."""
        own = self.source
        assert isinstance(own, FairseqConfig)
        return own.languages or (self.source_lang, self.target_lang)

    @model_validator(mode="after")
    def _check_languages(self) -> DataConfig:
        # the files of clean text are named after the languages
        if self.source_lang == self.target_lang and isinstance(self.source, ShardsConfig):
            message = f"it and source_lang are both {self.target_lang!r}; give two names"
            raise FieldErrors([("target_lang", message)])
        return self

    @model_validator(mode="after")
    def _check_symbols(self) -> DataConfig:
        where = "vocab.user_symbols" if self.vocab.joint else "vocab.source.user_symbols"
        for tag in self.language_tags or ():
            if tag not in self.vocab.source_side.user_symbols:
                raise FieldErrors([("language_tags", f"{tag!r} is not in {where}")])
        name = "NFKC" if self.clean.nfkc else self.clean.unicode_form
        if name is None:
            return self
        key = "nfkc" if self.clean.nfkc else "unicode_form"
        for side, vocab in self.vocab.parts.items():
            for symbol in vocab.user_symbols:
                if (form := unicodedata.normalize(name, symbol)) != symbol:
                    message = f"data.clean.{key} turns {symbol} into {form}; list it in that form"
                    place = f"vocab.{side}.user_symbols" if side else "vocab.user_symbols"
                    raise FieldErrors([(place, message)])
        return self
