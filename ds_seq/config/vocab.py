"""The `data.vocab` section: the subword vocabulary."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.config.base import PLUGIN, Config, FieldErrors, NonNegativeInt
from ds_seq.names import (
    IDENTITY,
    NORMALIZATION_RULES,
    SENTENCEPIECE,
    SPECIAL_PIECES,
    TOKENIZER_NAMES,
)
from ds_seq.plugins import EXTERNAL_PATTERN, nearest

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
