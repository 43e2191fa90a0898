"""The `data.raw` section: files of raw text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ds_seq.config.base import Config


class SplitConfig(Config):
    """Two parallel text files: line n of one translates line n of the other."""

    source: str = Field(description="File of source sentences, one per line, UTF-8.")
    target: str = Field(description="File of target sentences, one per line, UTF-8.")
    alignments: str | None = Field(
        default=None,
        description="File of word alignments: on line n the links of pair n, such as `0-0 1-2`, "
        "source first, counted from 0. They are kept next to the shards.",
    )


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
