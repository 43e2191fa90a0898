"""The `generation` section: how translations are searched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Temperature,
)
from ds_seq.names import EnsembleMean, LengthPenaltyForm

Penalty = Annotated[float, Field(ge=0.0, le=1e6)]
"""Subtracted from log-probabilities, which are seldom below -100."""


class GenerationConfig(Config):
    """Beam search or sampling, in validation and in `ds-seq generate`."""

    beam: PositiveInt = Field(default=5, le=10_000, description="Beam size; 1 is greedy search.")
    length_penalty: float = Field(
        default=1.0,
        ge=-100.0,  # below 0 favors short translations, as in fairseq
        le=100.0,
        description="Scores are log-probability / length ** this; larger values favor longer "
        "translations.",
    )
    length_penalty_form: LengthPenaltyForm = Field(
        default="fairseq",
        description="Base of the length penalty: the length, or (5 + length) / 6 (GNMT).",
    )
    unk_penalty: Penalty = Field(
        default=0.0, description="Subtracted from the log-probability of <unk>."
    )
    temperature: Temperature = Field(
        default=1.0,
        description="Divides the logits before the softmax; above 1 flattens, below 1 sharpens.",
    )
    ensemble: EnsembleMean = Field(
        default="probabilities",
        description="Quantity that an ensemble of models averages.",
    )
    lm: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Run folder or export of a language model of the target whose "
        "log-probabilities are added in each step of the search (shallow fusion); null: none.",
    )
    lm_weight: float = Field(
        default=0.3,
        ge=0.0,
        le=100.0,
        description="Factor of the log-probabilities of `lm`.",
    )
    shortlist: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="File of `ds-seq shortlist`: translations consist of likely translations of "
        "their source tokens, and only these are scored; null: the whole vocabulary.",
    )
    max_len_a: float = Field(
        default=1.2,
        ge=0.0,
        le=1000.0,
        description="Maximum length is max_len_a * source length + max_len_b.",
    )
    max_len_b: NonNegativeInt = Field(
        default=10, description="Maximum length is max_len_a * source length + max_len_b."
    )
    min_len: NonNegativeInt = Field(
        default=1, description="Minimum number of tokens, end symbol excluded."
    )
    no_repeat_ngram: NonNegativeInt = Field(
        default=0, description="Do not repeat n-grams of this size in a translation; 0 allows all."
    )
    diverse_groups: PositiveInt = Field(
        default=1,
        description="Number of equal groups in the beam; each is penalized for tokens of the "
        "groups before it (diverse beam search).",
    )
    diverse_strength: Penalty = Field(
        default=0.5,
        description="Penalty on a token for each time an earlier group has selected it.",
    )
    diverse_siblings: Penalty = Field(
        default=0.0,
        description="Penalty on a continuation for each better one of the same hypothesis; "
        "0 disables it.",
    )
    sampling: bool = Field(
        default=False,
        description="Sample translations from the model's distribution; `beam` is then unused.",
    )
    sampling_top_k: NonNegativeInt = Field(
        default=0, description="Sample only from the k most probable tokens; 0 means all."
    )
    sampling_top_p: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Sample only from the smallest set of most probable tokens whose total "
        "probability reaches this (nucleus sampling); 1 means all.",
    )
    sampling_epsilon: Probability = Field(
        default=0.0,
        description="Sample only from tokens more probable than this, and the most probable one; "
        "0 means all.",
    )
    seed: NonNegativeInt = Field(
        default=1,
        le=2**32 - 1,
        description="Seed of sampling; results do not depend on the batches or the number of "
        "processes.",
    )
    expert: PositiveInt | Literal["all"] = Field(
        default=1,
        description="Expert that translates, from 1, of a model trained with criterion `hard_em`; "
        "`all`: one translation by each expert, in their order.",
    )
    max_tokens: PositiveInt = Field(
        default=8192,
        description="Maximum batch size in tokens: sentences times the longest source.",
    )
    max_sentences: PositiveInt = Field(default=256, description="Maximum sentences per batch.")

    @model_validator(mode="after")
    def _check_language_model(self) -> GenerationConfig:
        if self.lm is not None and self.sampling:
            message = "cannot be combined with sampling: true, which draws from the model alone"
            raise FieldErrors([("lm", message)])
        if self.lm is None and self.lm_weight != 0.3:
            raise FieldErrors([("lm_weight", "has no effect without lm, a language model")])
        return self

    @model_validator(mode="after")
    def _check_shortlist(self) -> GenerationConfig:
        others = {
            "sampling": self.sampling,
            "lm": self.lm is not None,
            "diverse_groups": self.diverse_groups > 1,
            "diverse_siblings": self.diverse_siblings > 0,
            "expert": self.expert != 1,
        }
        used = [name for name, is_used in others.items() if is_used]
        if self.shortlist is not None and used:
            message = f"cannot be combined with {used[0]}; remove one of them"
            raise FieldErrors([("shortlist", message)])
        return self

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
            message = "cannot be combined with sampling: true, which does not search"
            raise FieldErrors([(name, message) for name in used])
        if len(used) > 1:
            message = "cannot be combined with diverse_groups; remove one of them"
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
            message = f"cannot be combined with {narrowed[0]}; remove one of them"
            raise FieldErrors([(name, message) for name in narrowed[1:]])
        return self
