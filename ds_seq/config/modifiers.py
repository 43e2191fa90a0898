"""The `data.modify` section: changes of training pairs on the fly."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ds_seq.config.base import Config, FieldErrors, NonNegativeFloat, PositiveInt
from ds_seq.names import SideChoice

Rate = Annotated[float, Field(ge=0.0, le=1.0)]


class ModifiersConfig(Config):
    """Changes of training pairs. Each is a function of (seed, epoch, pair, copy), on any rank."""

    subword_alpha: NonNegativeFloat = Field(
        default=0.0,
        description="Draw the subwords (SentencePiece only): of a unigram model with this "
        "smoothing of their probabilities (0.1 to 0.5 is usual), of a BPE model with this "
        "probability of leaving out a merge (BPE-dropout, 0.1); 0 draws nothing.",
    )
    subword_sides: SideChoice = Field(
        default="both", description="Sides whose subwords are drawn: `source`, `target`, `both`."
    )
    upper_case: Rate = Field(default=0.0, description="Share of pairs in upper case.")
    title_case: Rate = Field(default=0.0, description="Share of pairs in title case.")
    lower_case: Rate = Field(default=0.0, description="Share of pairs in lower case.")
    drop_end_punctuation: Rate = Field(
        default=0.0, description="Share of pairs without the punctuation at the end of both sides."
    )
    typos: Rate = Field(
        default=0.0,
        description="Share of pairs with typing mistakes in the source: letters left out, "
        "doubled, swapped, or replaced by another one.",
    )
    typo_rate: Rate = Field(
        default=0.1, description="Probability of a mistake per word of such a pair."
    )
    noise: Rate = Field(
        default=0.0,
        description="Share of pairs that random characters replace, the same on both sides, so "
        "that what cannot be translated is copied.",
    )
    token_drop: Rate = Field(default=0.0, description="Probability to leave out a source token.")
    token_mask: Rate = Field(
        default=0.0, description="Probability to replace a source token by `<unk>`."
    )
    token_switch: Rate = Field(
        default=0.0, description="Probability to replace a source token by a random one."
    )
    truncate: PositiveInt | None = Field(
        default=None,
        description="Cut longer sides of training pairs to this many tokens; null cuts nothing. "
        "Pairs that are then still too long: see `data.long_pairs`.",
    )

    @model_validator(mode="after")
    def _check_sum(self) -> ModifiersConfig:
        cases = self.upper_case + self.title_case + self.lower_case
        if cases > 1.0:
            message = f"upper_case, title_case and lower_case add up to {cases:g}, more than 1"
            raise FieldErrors([("upper_case", message)])
        return self
