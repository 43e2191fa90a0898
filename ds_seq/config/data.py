"""The `data` section: raw text, cleaning, subword vocabulary and shards."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from ds_seq.config.base import (
    PLUGIN,
    Config,
    ExternalConfig,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
    all_defaults,
    plugin_tag,
)
from ds_seq.names import (
    IDENTITY,
    NORMALIZATION_RULES,
    SENTENCEPIECE,
    SPECIAL_PIECES,
    TOKENIZER_NAMES,
)
from ds_seq.plugins import EXTERNAL_PATTERN, nearest


class SplitConfig(Config):
    """Two parallel text files: line n of one translates line n of the other."""

    source: str = Field(description="File of source sentences, one per line, UTF-8.")
    target: str = Field(description="File of target sentences, one per line, UTF-8.")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict | SplitConfig) else value


Splits = Annotated[list[SplitConfig], BeforeValidator(_as_list)]


class RawConfig(Config):
    """Raw parallel text. Each split is one `{source, target}` pair of files or a list of them."""

    train: Splits = Field(default=[], description="Training text.")
    valid: Splits = Field(
        default=[],
        description="Validation text; its raw target side is the reference of validation BLEU.",
    )
    test: Splits = Field(default=[], description="Test text, never used in training.")


class CleanConfig(Config):
    """Normalization and filters of raw text. Valid and test text are normalized, never filtered."""

    nfkc: bool = Field(
        default=False,
        description="Unicode NFKC normalization (folds full-width letters, ligatures, ...).",
    )
    fold_spaces: bool = Field(
        default=False,
        description="Replace no-break, ideographic and other special spaces with ordinary ones, "
        "and remove soft hyphens and zero-width spaces.",
    )
    min_words: PositiveInt = Field(default=1, description="Drop pairs with a side of fewer words.")
    max_words: PositiveInt = Field(default=250, description="Drop pairs with a side of more words.")
    max_ratio: float = Field(
        default=3.0, ge=1.0, description="Drop pairs whose ratio of word counts is larger."
    )
    drop_identical: bool = Field(
        default=True, description="Drop pairs whose source and target are identical."
    )
    drop_duplicates: bool = Field(
        default=True, description="Keep only the first of identical pairs."
    )

    @model_validator(mode="after")
    def _check_words(self) -> CleanConfig:
        if self.min_words > self.max_words:
            raise FieldErrors(
                [("min_words", f"{self.min_words} is more than max_words {self.max_words}")]
            )
        return self


# What text never contains when the tokenizer reads it: white space inside a symbol, control and
# invisible characters, and the mark by which SentencePiece replaces spaces.
_UNMATCHED = re.compile("[\\s\x00-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\u2581]")


class VocabConfig(Config):
    """The joint tokenizer of source and target, by default a SentencePiece model."""

    name: Annotated[str, PLUGIN] = Field(
        default="sentencepiece",
        description="`sentencepiece`, or `package.module:Name` of an external tokenizer class, "
        "which also receives `size` and `user_symbols`.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="Training options of an external tokenizer; `sentencepiece` accepts none.",
    )

    size: int = Field(
        default=32000, ge=8, le=10_000_000, description="Vocabulary size, special symbols included."
    )
    model_type: Literal["unigram", "bpe"] = Field(
        default="unigram", description="SentencePiece algorithm."
    )
    character_coverage: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Fraction of characters covered by subwords; use 0.9995 for Chinese or "
        "Japanese.",
    )
    input_sentence_size: NonNegativeInt = Field(
        default=2_000_000,
        description="Number of sentences sampled to train the tokenizer; 0 means all.",
    )
    normalization: str = Field(
        default=IDENTITY,
        description="Rule by which SentencePiece rewrites text, and so also the translations: "
        "`identity` changes nothing; `nfkc`, `nmt_nfkc`, `nfkc_cf`, `nmt_nfkc_cf` (cf: lower "
        "case), or a file `NAME.tsv` of its own rules.",
    )
    user_symbols: list[str] = Field(
        default=[],
        description="Strings that are always a single subword, such as `<2de>`.",
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in TOKENIZER_NAMES and not re.fullmatch(EXTERNAL_PATTERN, name):
            raise ValueError(
                f"no tokenizer {name!r}{nearest(name, TOKENIZER_NAMES)}; there are "
                f"{', '.join(TOKENIZER_NAMES)}, or `package.module:Name`"
            )
        return name

    @field_validator("normalization")
    @classmethod
    def _check_normalization(cls, rule: str) -> str:
        if rule not in NORMALIZATION_RULES and not rule.endswith(".tsv"):
            raise ValueError(
                f"no rule {rule!r}{nearest(rule, NORMALIZATION_RULES)}; there are "
                f"{', '.join(NORMALIZATION_RULES)}, or a file NAME.tsv"
            )
        return rule

    @field_validator("user_symbols")
    @classmethod
    def _check_user_symbols(cls, symbols: list[str]) -> list[str]:
        known: set[str] = set()
        for symbol in symbols:
            if not symbol:
                raise ValueError("a symbol is empty; remove it")
            if symbol in SPECIAL_PIECES:
                raise ValueError(f"{symbol} is always in the vocabulary; remove it")
            if symbol in known:
                raise ValueError(f"{symbol} is listed twice; remove one of them")
            known.add(symbol)
            if _UNMATCHED.search(symbol):
                raise ValueError(
                    f"{symbol!r} contains white space or an invisible character, which no line of "
                    "text can match; use visible characters, such as <2de>"
                )
        return symbols

    @model_validator(mode="after")
    def _check_size(self) -> VocabConfig:
        least = len(SPECIAL_PIECES) + len(self.user_symbols) + 1
        if self.name == SENTENCEPIECE and self.size < least:
            raise FieldErrors(
                [
                    (
                        "size",
                        f"{self.size} has no room for text: {len(SPECIAL_PIECES)} special and "
                        f"{len(self.user_symbols)} user symbols need at least {least}",
                    )
                ]
            )
        return self

    @model_validator(mode="after")
    def _check_options(self) -> VocabConfig:
        if self.name == SENTENCEPIECE:
            if self.options:
                message = "only an external tokenizer (`package.module:Name`) accepts options"
                raise FieldErrors([("options", message)])
            return self
        fields = type(self).model_fields
        sentencepiece_only = (
            "model_type",
            "character_coverage",
            "input_sentence_size",
            "normalization",
        )
        foreign = [name for name in sentencepiece_only if vars(self)[name] != fields[name].default]
        if foreign:
            message = (
                f"applies to sentencepiece only; set options of {self.name} in data.vocab.options"
            )
            raise FieldErrors([(name, message) for name in foreign])
        return self


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
    workers: PositiveInt | None = Field(
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
        if not self.clean.nfkc:
            return self
        for symbol in self.vocab.user_symbols:
            if (form := unicodedata.normalize("NFKC", symbol)) != symbol:
                message = f"data.clean.nfkc turns {symbol} into {form}; list it in that form"
                raise FieldErrors([("vocab.user_symbols", message)])
        return self
