"""How long, how fast and where: batches, precision, stopping, saving, expert parallelism."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)
from ds_seq.names import FrozenPart, Precision


class TrainConfig(Config):
    """The training run."""

    deepspeed: str | None = Field(
        default=None,
        description="DeepSpeed JSON, relative to the working folder or to the experiment file; "
        "null is ZeRO stage 0 with DeepSpeed's own defaults.",
    )
    max_tokens: PositiveInt = Field(
        default=4096,
        description="Size of a batch on one rank: sentences times the longest side, with padding.",
    )
    max_sentences: PositiveInt | None = Field(
        default=None, description="Most sentences of a batch; null sets no limit."
    )
    accumulate: PositiveInt = Field(
        default=1, description="Batches a rank takes for one update (gradient accumulation)."
    )
    precision: Precision = Field(
        default="fp32", description="Number format of the model; masters stay fp32."
    )
    clip_norm: NonNegativeFloat = Field(
        default=0.0, description="Largest norm of the gradient; 0 never clips."
    )
    sparse_clip: bool = Field(
        default=False,
        description="In that norm the gradient of an expert counts 1 / sqrt(experts of its layer), "
        "for it comes from so small a part of the tokens; all gradients are scaled alike.",
    )
    seed: NonNegativeInt = Field(
        default=1, description="Seed of initialization, dropout and batch order."
    )
    init_from: str | None = Field(
        default=None,
        description="Run folder, exported folder or exported file whose weights the model starts "
        "with; a dense feed-forward becomes every expert of the same layer (upcycling; exact with "
        "`model.moe.normalize_weights: after_dropping`). Null draws them.",
    )
    init_checkpoint: str = Field(
        default="best", description="Its checkpoint: `best`, `last`, a name or a path."
    )
    upcycle_noise: NonNegativeFloat = Field(
        default=0.0,
        description="Noise that tells upcycled experts apart, in standard deviations of each "
        "matrix; 0 adds none.",
    )
    freeze: list[FrozenPart] = Field(
        default=[],
        description="Parts that keep the weights they start with: `encoder`, `embeddings` (where "
        "they are tied, the projection to the vocabulary with them).",
    )
    max_updates: PositiveInt = Field(default=100_000, description="Stop after this many updates.")
    max_epochs: PositiveInt | None = Field(
        default=None, description="Stop after this many passes over the data."
    )
    max_hours: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None, description="Save and stop after this many hours."
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="Stop after this many validations in a row without a better `validation.best`.",
    )
    log_every: PositiveInt = Field(default=100, description="Updates between two log entries.")
    validate_every: PositiveInt | None = Field(
        default=1000, description="Updates between two validations; null never validates."
    )
    save_every: PositiveInt | None = Field(
        default=None, description="Updates between two checkpoints; null saves at each validation."
    )
    keep_last: PositiveInt = Field(default=2, description="Most recent checkpoints that are kept.")
    keep_best: PositiveInt = Field(default=1, description="Best checkpoints that are kept.")
    sanity_validation_batches: NonNegativeInt = Field(
        default=2,
        description="Validation batches tried before the first update, to fail early; 0 is none.",
    )
    expert_parallel: PositiveInt = Field(
        default=1,
        description="Ranks that share the experts of a layer; must divide the world size and "
        "`model.moe.num_experts`.",
    )
    num_prefetch: PositiveInt = Field(
        default=4, description="Batches collated ahead of the model in the background."
    )
    tensorboard: bool = Field(
        default=True, description="Write TensorBoard files beside the JSONL log."
    )

    @model_validator(mode="after")
    def _check_validation(self) -> TrainConfig:
        errors = []
        if self.upcycle_noise and self.init_from is None:
            errors.append(("upcycle_noise", "is added to the weights of init_from, which is null"))
        if self.sparse_clip and self.clip_norm == 0.0:
            errors.append(("sparse_clip", "clips by clip_norm, which is 0 (never); give it a norm"))
        if self.validate_every is None:
            if self.save_every is None:
                errors.append(
                    ("save_every", "null saves at validations, but validate_every is null")
                )
            if self.patience is not None:
                errors.append(("patience", "counts validations, but validate_every is null"))
        if errors:
            raise FieldErrors(errors)
        return self
