"""The `data.raw` section: files of raw text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from ds_seq.config.base import Config, FieldErrors

Language = Annotated[str, StringConstraints(pattern=r"^[^\s/\\.][^\s/\\]*$")]
"""A language code; it ends the names of files, so it must not lead into another folder."""
Tags = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
LanguagePair = tuple[str, str]


class SplitConfig(Config):
    """Two parallel text files: line n of one translates line n of the other."""

    source: str = Field(description="File of source sentences, one per line, UTF-8.")
    target: str = Field(description="File of target sentences, one per line, UTF-8.")
    languages: list[Language] = Field(
        default=[],
        description="Language codes of source and target, such as `[en, fr]`; empty: "
        "`data.source_lang` and `data.target_lang`.",
    )
    tag: Tags = Field(
        default=[],
        description="User symbol, or a list of them, at the start of each source sentence, such as "
        "`<bt>` for back-translations; after the tag of the language.",
    )
    target_tag: Tags = Field(
        default=[],
        description="User symbol, or a list of them, at the start of each target sentence; "
        "translations begin with it, too.",
    )

    def pair(self, default: LanguagePair) -> LanguagePair:
        """Return the language codes of source and target, by default those of `data`."""
        source, target = self.languages or default
        return source, target

    @model_validator(mode="after")
    def _check_pair(self) -> SplitConfig:
        if self.languages and len(self.languages) != 2:
            message = f"names {len(self.languages)}; give two: of the source, then of the target"
            raise FieldErrors([("languages", message)])
        return self


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
