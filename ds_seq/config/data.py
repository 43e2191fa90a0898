"""The `data` section: raw text, cleaning, subword vocabulary and shards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from ds_seq.config.base import (
    EXTERNAL_PATTERN,
    Config,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
)
from ds_seq.names import SENTENCEPIECE, TOKENIZER_NAMES
from ds_seq.plugins import nearest


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


class VocabConfig(Config):
    """The joint tokenizer of source and target, by default a SentencePiece model."""

    name: str = Field(
        default="sentencepiece",
        description="`sentencepiece`, or `package.module:Name` of an external tokenizer class, "
        "which also receives `size` and `user_symbols`.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="Training options of an external tokenizer; `sentencepiece` accepts none.",
    )

    size: int = Field(default=32000, ge=8, description="Vocabulary size, special symbols included.")
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
        default=10_000_000,
        description="Number of sentences sampled to train the tokenizer; 0 means all.",
    )
    user_symbols: list[str] = Field(
        default=[],
        description="Strings that are always a single subword, such as `<2de>`.",
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in TOKENIZER_NAMES and not re.match(EXTERNAL_PATTERN, name):
            raise ValueError(
                f"no tokenizer {name!r}{nearest(name, TOKENIZER_NAMES)}; there are "
                f"{', '.join(TOKENIZER_NAMES)}, or `package.module:Name`"
            )
        return name

    @model_validator(mode="after")
    def _check_options(self) -> VocabConfig:
        if self.name == SENTENCEPIECE:
            if self.options:
                message = "only an external tokenizer (`package.module:Name`) accepts options"
                raise FieldErrors([("options", message)])
            return self
        fields = type(self).model_fields
        sentencepiece_only = ("model_type", "character_coverage", "input_sentence_size")
        foreign = [name for name in sentencepiece_only if vars(self)[name] != fields[name].default]
        if foreign:
            message = f"it and source_lang are both {self.target_lang!r}; give two names"
            raise FieldErrors([("target_lang", message)])
        return self
