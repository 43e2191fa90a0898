"""How translations are searched."""

from __future__ import annotations

from pydantic import Field

from ds_seq.config.base import Config, NonNegativeFloat, NonNegativeInt, PositiveInt


class GenerationConfig(Config):
    """Beam search, in validation and in `ds-seq generate`."""

    beam: PositiveInt = Field(default=5, description="Hypotheses kept a sentence; 1 is greedy.")
    length_penalty: float = Field(
        default=1.0,
        description="Scores are log-probability / length ** this; more favours long translations.",
    )
    max_len_a: NonNegativeFloat = Field(
        default=1.2, description="Longest translation is max_len_a * source length + max_len_b."
    )
    max_len_b: NonNegativeInt = Field(
        default=10, description="Longest translation is max_len_a * source length + max_len_b."
    )
    min_len: NonNegativeInt = Field(
        default=1, description="Fewest tokens of a translation, end symbol not counted."
    )
    no_repeat_ngram: NonNegativeInt = Field(
        default=0, description="No n-gram of this size occurs twice in a translation; 0 allows all."
    )
    max_tokens: PositiveInt = Field(
        default=4096, description="Size of a batch: sentences times the longest source."
    )
    max_sentences: PositiveInt = Field(default=128, description="Most sentences of a batch.")
