"""How translations are searched."""

from __future__ import annotations

from pydantic import Field, model_validator

from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
)
from ds_seq.names import EnsembleMean, LengthPenaltyForm


class GenerationConfig(Config):
    """Beam search or sampling, in validation and in `ds-seq generate`."""

    beam: PositiveInt = Field(default=5, description="Hypotheses kept a sentence; 1 is greedy.")
    length_penalty: float = Field(
        default=1.0,
        description="Scores are log-probability / length ** this; more favors long translations.",
    )
    length_penalty_form: LengthPenaltyForm = Field(
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
    ensemble: EnsembleMean = Field(
        default="probabilities",
        description="Of what the mean is taken where several models translate together.",
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
    diverse_groups: PositiveInt = Field(
        default=1,
        description="Groups of equal size into which the beam is split; each avoids the tokens of "
        "those before it (diverse beam search).",
    )
    diverse_strength: NonNegativeFloat = Field(
        default=0.5,
        description="What a token costs a group for each time that groups before it have taken it.",
    )
    diverse_siblings: NonNegativeFloat = Field(
        default=0.0,
        description="What a continuation costs for each better one of the same hypothesis; "
        "0: nothing.",
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
        default=8192, description="Size of a batch: sentences times the longest source."
    )
    max_sentences: PositiveInt = Field(default=256, description="Most sentences of a batch.")

    @model_validator(mode="after")
    def _check_diversity(self) -> GenerationConfig:
        if self.beam % self.diverse_groups and not self.sampling:
            message = f"{self.diverse_groups} groups do not divide a beam of {self.beam}"
            raise FieldErrors([("diverse_groups", message)])
        kinds = {
            "diverse_groups": self.diverse_groups > 1,
            "diverse_siblings": self.diverse_siblings > 0,
        }
        used = [name for name, is_used in kinds.items() if is_used]
        if used and self.sampling:
            message = "does not go together with sampling: true, which searches nothing"
            raise FieldErrors([(name, message) for name in used])
        if len(used) > 1:
            message = "does not go together with diverse_groups; leave one of them out"
            raise FieldErrors([("diverse_siblings", message)])
        if self.diverse_strength != 0.5 and self.diverse_groups == 1:
            raise FieldErrors(
                [("diverse_strength", "has no effect without diverse_groups above 1")]
            )
        return self

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
