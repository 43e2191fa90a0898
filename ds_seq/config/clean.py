"""The `data.clean` section: normalization and filters of raw text."""

from __future__ import annotations

from pydantic import Field, model_validator

from ds_seq.config.base import Config, FieldErrors, PositiveInt


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
