"""The `train` section: batches, precision, stopping, checkpoints and expert parallelism."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ds_seq.activity import HANG_SECONDS
from ds_seq.config.base import (
    Config,
    FieldErrors,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)
from ds_seq.config.ema import EmaConfig
from ds_seq.config.selection import SELECTION_HELP, PartName
from ds_seq.names import (
    BatchOrder,
    OnDivergence,
    OnOutOfMemory,
    Precision,
    SaveErrorAnswer,
    TrackerName,
)

_MOST_PROFILED = 20
_FIRST_TRIED = 4096
"""Batch size in tokens where only a trial can tell it."""


class TrainConfig(Config):
    """The training run."""

    deepspeed: str | None = Field(
        default=None,
        description="DeepSpeed JSON; null means DeepSpeed's defaults with ZeRO stage 0 in fp32 and "
        "stage 1 in fp16 and bf16 (0 for adafactor).",
    )
    max_tokens: PositiveInt | Literal["auto"] | None = Field(
        default=4096,
        description="Maximum batch size per rank in tokens, padding included: sentences times the "
        "longest side. `auto` finds it by trial before the first update; null: "
        "`train.max_sentences` is the only limit.",
    )
    max_sentences: PositiveInt | None = Field(
        default=None, description="Maximum number of sentences per batch; null sets no limit."
    )
    sentence_multiple: PositiveInt = Field(
        default=1,
        description="Cut batches with more sentences than this to a multiple of it.",
    )
    batch_order: BatchOrder = Field(
        default="sorted",
        description="`sorted` makes batches of all pairs by length, with the least padding. "
        "`sortish` does so in random groups of 50 batches, so that batches vary more.",
    )
    largest_first: bool = Field(
        default=False,
        description="Take the largest batch of the first epoch first, so that a lack of memory "
        "shows at once.",
    )
    accumulate: PositiveInt = Field(
        default=1, le=100_000, description="Batches per rank and update (gradient accumulation)."
    )
    batches_per_update: PositiveInt | None = Field(
        default=None,
        description="Batches per update over all ranks. With it, `accumulate` follows from the "
        "number of ranks, and an update has the same pairs on any number of ranks; some may be "
        "idle at its end. Null: ranks times `accumulate`.",
    )
    global_batch_tokens: PositiveInt | None = Field(
        default=None,
        description="Tokens per update over all ranks, counted as `max_tokens` counts them. It "
        "sets `batches_per_update` to as few batches of `max_tokens` as hold so many tokens, so "
        "updates stay the same on any number of ranks. Null: `batches_per_update` holds.",
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
    on_divergence: OnDivergence = Field(
        default="stop",
        description="What to do when gradients are not finite, and no lower fp16 loss scale can "
        "help. Such an update is always skipped; `stop` ends the run when more than 2 of the last "
        "20 were, `skip` when more than `train.max_skips` of the last 1000 were. Where `stop` "
        "would end the run, `back` takes up the state of the last checkpoint and continues without "
        "the batches since then; it needs a checkpoint of the start, which it writes.",
    )
    max_skips: PositiveInt = Field(
        default=20,
        le=1000,
        description="Updates among the last 1000 that `train.on_divergence: skip` may skip.",
    )
    max_returns: PositiveInt = Field(
        default=3, description="Returns to a checkpoint after which `back` ends the run, too."
    )
    return_lr_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0,
        description="Factor on the learning rate after each return of `train.on_divergence: back`.",
    )
    on_out_of_memory: OnOutOfMemory = Field(
        default="split",
        description="What to do when memory runs out for a batch of one rank: run the update again "
        "with it in halves, or without it, or end the run, which happens in any case where ranks "
        "share experts or weights (`expert_parallel`, ZeRO 3). Batches that are left out count "
        "for `train.max_skips`.",
    )
    loss_spike: Annotated[float, Field(gt=1.0)] | None = Field(
        default=2.0,
        description="Record the pairs of an update whose loss is more than this many times the "
        "median of the last 100; null records none.",
    )
    norm_spike: Annotated[float, Field(gt=1.0)] | None = Field(
        default=10.0,
        description="The same for the gradient norm before clipping.",
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
        default="best",
        description="Checkpoint of `init_from`: `best`, `last`, a name or a path; `best:raw` "
        "and the like do without the average of `train.ema`.",
    )
    upcycle_noise: NonNegativeFloat = Field(
        default=0.0,
        description="Noise added to upcycled experts so that they differ, in standard deviations "
        "of each matrix; 0 adds none.",
    )
    allow_missing: list[PartName] = Field(
        default=[],
        description="Parts of the model that `init_from` need not have and that keep their initial "
        "values, such as `[adapters]`, named as in `freeze`. The log lists them.",
    )
    allow_unexpected: list[PartName] = Field(
        default=[],
        description="Parts of `init_from` that the model need not have, named as in `freeze`.",
    )
    freeze: list[PartName] = Field(
        default=[],
        description=f"Parts whose weights are not trained: {SELECTION_HELP}. With `embeddings`, "
        "an output projection that is tied to them is frozen, too.",
    )
    trainable: list[PartName] = Field(
        default=[],
        description="Parts whose weights are trained, all others being frozen, named as in "
        "`freeze`: `[adapters.de]` trains one adapter. Empty: all but those of `freeze`.",
    )
    ema: EmaConfig | None = Field(
        default=None,
        description="An exponential moving average of the weights. It is validated and saved, and "
        "what uses the run takes it unless told otherwise (checkpoint `best:raw`); null: none.",
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
    keep_best_state: bool = Field(
        default=True,
        description="Keep the optimizer state of the best checkpoints. `false` deletes it once "
        "they are not among the last ones, which frees two thirds of their size under Adam: they "
        "translate, export and average, but `--resume` cannot start from them.",
    )
    background_save: bool = Field(
        default=False,
        description="Train on while a checkpoint is written: only copying the state to host memory "
        "holds up training. Each rank keeps that copy, its share of 12 bytes per parameter with "
        "Adam, and with ZeRO on several ranks up to as much again for what it sends to others.",
    )
    on_save_error: SaveErrorAnswer = Field(
        default="stop",
        description="What follows a checkpoint that cannot be written, as on a full disk: `stop` "
        "ends the run, `continue` warns, counts it as `failed_saves` in the log, and trains on. "
        "Earlier checkpoints stay intact.",
    )
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
    hang_seconds: Annotated[float, Field(ge=1.0)] | None = Field(
        default=HANG_SECONDS,
        description="End all ranks if one has died, or has made no progress for this many seconds; "
        "four times as long while a checkpoint is written or a model is built. Null: never.",
    )
    num_prefetch: PositiveInt = Field(
        default=4, le=10_000, description="Number of batches collated ahead in the background."
    )
    profile: str | None = Field(
        default=None,
        description="`FROM:TO` traces these updates with torch's profiler, into `profile/` in the "
        "run folder; at most 20. Null traces none.",
    )
    peak_tflops: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None,
        description="Peak speed of a device in TFLOP/s, of which `mfu` is the used share. Null "
        "knows NVIDIA's data-center GPUs, and measures a CPU.",
    )
    tensorboard: bool = Field(
        default=True, description="Write TensorBoard files in addition to the JSONL log."
    )
    trackers: list[TrackerName] = Field(
        default=[],
        description="Also send the figures to these, if they are installed: `wandb`, `mlflow`. "
        "Their own environment variables configure them (`WANDB_MODE`, `MLFLOW_TRACKING_URI`).",
    )

    @property
    def profiled_updates(self) -> tuple[int, int] | None:
        """The first and the last update to trace; None for none."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        return int(first), int(last)

    @field_validator("profile")
    @classmethod
    def _check_profile(cls, value: str | None) -> str | None:
        if value is None:
            return None
        numbers = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", value)
        if numbers is None:
            raise ValueError(f"should be FROM:TO, such as 10:12, not {value!r}")
        first, last = int(numbers[1]), int(numbers[2])
        if not 1 <= first <= last < first + _MOST_PROFILED:
            raise ValueError(
                f"{value} should be numbers of updates from 1, FROM first, and at most "
                f"{_MOST_PROFILED} of them: traces are large"
            )
        return value

    def most_tokens(self, longest: int) -> int:
        """Return the maximum batch size in tokens, for sentences of at most `longest` tokens."""
        if isinstance(self.max_tokens, int):
            return self.max_tokens
        most = _FIRST_TRIED if self.max_sentences is None else self.max_sentences * longest
        return max(longest, most)

    def group(self, world_size: int) -> int:
        """Return the number of batches per update over all ranks."""
        return self.fixed_group or self.accumulate * world_size

    @property
    def fixed_group(self) -> int | None:
        """Number of batches per update on any number of ranks; None if it depends on them."""
        if self.global_batch_tokens is None:
            return self.batches_per_update
        assert isinstance(self.max_tokens, int), "checked by `_check_batches`"
        return -(-self.global_batch_tokens // self.max_tokens)

    def accumulate_on(self, world_size: int) -> int:
        """Return the number of batches per rank and update, some of which may be empty."""
        if self.fixed_group is None:
            return self.accumulate
        return -(-self.fixed_group // world_size)

    def _check_batches(self) -> list[tuple[str, str]]:
        if self.global_batch_tokens is None:
            return []
        errors = []
        if not isinstance(self.max_tokens, int):
            size = "null" if self.max_tokens is None else self.max_tokens
            errors.append(
                ("global_batch_tokens", f"needs a number for max_tokens, which is {size}")
            )
        if self.batches_per_update is not None:
            errors.append(("batches_per_update", "contradicts global_batch_tokens; remove one"))
        return errors

    @model_validator(mode="after")
    def _check_validation(self) -> TrainConfig:
        errors = self._check_batches()
        if self.max_tokens is None and self.max_sentences is None:
            errors.append(("max_tokens", "and max_sentences are both null; give one of them"))
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
