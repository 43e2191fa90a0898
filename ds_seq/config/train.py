"""The `train` section: batches, precision, stopping, checkpoints and expert parallelism."""

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
        description="DeepSpeed JSON; null means DeepSpeed's defaults with ZeRO stage 0 in fp32 and "
        "stage 1 in fp16 and bf16 (0 for adafactor).",
    )
    max_tokens: PositiveInt = Field(
        default=4096,
        description="Maximum batch size per rank in tokens, padding included: sentences times the "
        "longest side.",
    )
    max_sentences: PositiveInt | None = Field(
        default=None, description="Maximum number of sentences per batch; null sets no limit."
    )
    accumulate: PositiveInt = Field(
        default=1, le=100_000, description="Batches per rank and update (gradient accumulation)."
    )
    precision: Precision = Field(
        default="fp32", description="Number format of the model; master weights stay fp32."
    )
    clip_norm: NonNegativeFloat = Field(
        default=0.0, description="Maximum gradient norm; 0 disables clipping."
    )
    sparse_clip: bool = Field(
        default=False,
        description="Weight each expert's gradient in that norm by 1 / sqrt(experts of its layer), "
        "because it comes from a fraction of the tokens; all gradients are scaled by one factor.",
    )
    seed: NonNegativeInt = Field(
        default=1,
        description="Seed of initialization, dropout and batch order. Dropout and other draws of "
        "training also depend on the rank and on how an update is split into batches, so another "
        "number of ranks draws other numbers.",
    )
    init_from: str | None = Field(
        default=None,
        description="Run folder, exported folder or exported file that provides the initial "
        "weights; a dense feed-forward is copied to every expert of its layer (upcycling; exact "
        "with `model.moe.normalize_weights: after_dropping`). Null initializes at random.",
    )
    init_checkpoint: str = Field(
        default="best", description="Checkpoint of `init_from`: `best`, `last`, a name or a path."
    )
    upcycle_noise: NonNegativeFloat = Field(
        default=0.0,
        description="Noise added to upcycled experts so that they differ, in standard deviations "
        "of each matrix; 0 adds none.",
    )
    freeze: list[FrozenPart] = Field(
        default=[],
        description="Parts whose weights are not trained: `encoder`, `embeddings` (and the output "
        "projection if it is tied to them).",
    )
    max_updates: PositiveInt = Field(default=100_000, description="Stop after this many updates.")
    max_epochs: PositiveInt | None = Field(
        default=None, description="Stop after this many passes over the data."
    )
    max_hours: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None,
        description="Save and stop after this many hours; a run that resumes counts from 0.",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="Stop after this many consecutive validations without a better "
        "`validation.best`.",
    )
    log_every: PositiveInt = Field(default=100, description="Updates between log entries.")
    validate_every: PositiveInt | None = Field(
        default=1000, description="Updates between validations; null disables validation."
    )
    save_every: PositiveInt | None = Field(
        default=None, description="Updates between checkpoints; null saves at each validation."
    )
    keep_last: PositiveInt = Field(default=2, description="Number of latest checkpoints to keep.")
    keep_best: PositiveInt = Field(default=1, description="Number of best checkpoints to keep.")
    sanity_validation_batches: NonNegativeInt = Field(
        default=2,
        description="Validation batches to try before the first update, to fail early; 0 disables "
        "this.",
    )
    expert_parallel: PositiveInt = Field(
        default=1,
        description="Number of ranks that share the experts of a layer; must divide the world size "
        "and `model.moe.num_experts`.",
    )
    num_prefetch: PositiveInt = Field(
        default=4, le=10_000, description="Number of batches collated ahead in the background."
    )
    tensorboard: bool = Field(
        default=True, description="Write TensorBoard files in addition to the JSONL log."
    )

    @model_validator(mode="after")
    def _check_validation(self) -> TrainConfig:
        errors = []
        if self.upcycle_noise and self.init_from is None:
            errors.append(("upcycle_noise", "needs init_from, which is null"))
        if self.sparse_clip and self.clip_norm == 0.0:
            errors.append(("sparse_clip", "needs clip_norm above 0"))
        if self.validate_every is None:
            if self.save_every is None:
                errors.append(
                    ("save_every", "null saves at each validation, but validate_every is null")
                )
            if self.patience is not None:
                errors.append(("patience", "counts validations, but validate_every is null"))
        if errors:
            raise FieldErrors(errors)
        return self
