"""How translations are searched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
)


class GenerationConfig(Config):
    """Beam search or sampling, in validation and in `ds-seq generate`."""

    beam: PositiveInt = Field(default=5, description="Hypotheses kept a sentence; 1 is greedy.")
    length_penalty: float = Field(
        default=1.0,
        description="Scores are log-probability / length ** this; more favours long translations.",
    )
    length_penalty_form: Literal["fairseq", "gnmt"] = Field(
        default="fairseq",
        description="What is raised to length_penalty: the length, or (5 + length) / 6 (GNMT).",
    )
    unk_penalty: NonNegativeFloat = Field(
        default=0.0, description="Taken from the log-probability of the unknown symbol <unk>."
    )
    temperature: float = Field(
        default=1.0,
        gt=0.0,
        allow_inf_nan=False,
        description="Divides the logits before the softmax; above 1 flattens, below 1 sharpens.",
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
    sampling: bool = Field(
        default=False,
        description="Draw translations from the model's distribution; `beam` is not used then.",
    )
    sampling_top_k: NonNegativeInt = Field(
        default=0, description="Draw from the k most probable tokens only; 0: from all."
    )
    sampling_top_p: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Draw from the fewest most probable tokens that together have this probability "
        "(nucleus sampling) only; 1: from all.",
    )
    sampling_epsilon: Probability = Field(
        default=0.0,
        description="Draw from tokens more probable than this, and the most probable, only; "
        "0: from all.",
    )
    seed: NonNegativeInt = Field(
        default=1,
        le=2**32 - 1,
        description="Random numbers of sampling; the same for any batches and number of processes.",
    )
    max_tokens: PositiveInt = Field(
        default=4096, description="Size of a batch: sentences times the longest source."
    )
    max_sentences: PositiveInt = Field(default=128, description="Most sentences of a batch.")

    @model_validator(mode="after")
    def _check_sampling(self) -> GenerationConfig:
        free = {"sampling_top_k": 0, "sampling_top_p": 1.0, "sampling_epsilon": 0.0}
        given = self.model_dump(include=set(free))
        narrowed = [name for name, value in free.items() if given[name] != value]
        if narrowed and not self.sampling:
            raise FieldErrors([(narrowed[0], "has no effect without sampling: true")])
        if len(narrowed) > 1:
            message = f"does not go together with {narrowed[0]}; leave one of them out"
            raise FieldErrors([(name, message) for name in narrowed[1:]])
        return self
