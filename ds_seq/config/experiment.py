"""The whole experiment: all sections, and the checks that involve more than one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationInfo, model_validator

from ds_seq.config.base import Config, FieldErrors, all_defaults
from ds_seq.config.criterion import (
    BaseCriterionConfig,
    CriterionConfig,
    CrossEntropyConfig,
    HardEmConfig,
    MinimumRiskConfig,
    ModelAndBaseConfig,
)
from ds_seq.config.criterion_checks import (
    adaptive_errors,
    distillation_errors,
    mixture_errors,
    pair_errors,
    weight_errors,
)
from ds_seq.config.data import DataConfig
from ds_seq.config.distillation import DistillationConfig
from ds_seq.config.generation import GenerationConfig
from ds_seq.config.model import ModelConfig
from ds_seq.config.optim import (
    DecayingConfig,
    OptimizerConfig,
    SchedulerConfig,
    WarmupStableDecayConfig,
)
from ds_seq.config.sides import longest_examples, side_errors, with_defaults_of_task
from ds_seq.config.task import DenoisingConfig, MaskedLanguageModelingConfig, TaskConfig
from ds_seq.config.task_checks import metric_errors, noise_errors
from ds_seq.config.train import TrainConfig
from ds_seq.config.upgrade import upgrade
from ds_seq.config.validation import ValidationConfig
from ds_seq.names import ADAPTERS, LOSS, TEXT_METRICS
from ds_seq.plugins import nearest

Check = Callable[[], list[tuple[str, str]]]

STAND_INS = "stand_ins"
"""Key in the validation context: names of invalid sections that were replaced by valid stand-ins.
Cross-section checks must not read them."""


class ExperimentConfig(Config):
    """The whole configuration of a run, except the DeepSpeed JSON that `train.deepspeed` names."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.+-]*[\w+-][\w.+-]*$")] = Field(
        description="Name of the run; letters, digits and `_ . + -`."
    )
    run_dir: str | None = Field(default=None, description="Run folder; null means `runs/<name>`.")
    data: DataConfig = Field(description="Languages, raw files and shards.")
    task: TaskConfig = Field(default_factory=all_defaults, description="The task to learn.")
    model: ModelConfig = Field(default_factory=all_defaults, description="The model.")
    criterion: CriterionConfig = Field(
        default_factory=all_defaults, description="What training minimizes."
    )
    optimizer: OptimizerConfig = Field(default_factory=all_defaults, description="The optimizer.")
    scheduler: SchedulerConfig = Field(
        default_factory=all_defaults, description="The learning rate over time."
    )
    train: TrainConfig = Field(default_factory=all_defaults, description="The training run.")
    validation: ValidationConfig = Field(
        default_factory=all_defaults, description="What a validation measures."
    )
    generation: GenerationConfig = Field(
        default_factory=all_defaults, description="Search of translations."
    )

    @property
    def run_folder(self) -> Path:
        """Folder of the run's files."""
        return Path(self.run_dir) if self.run_dir is not None else Path("runs") / self.name

    @property
    def base_criterion(self) -> tuple[str, BaseCriterionConfig]:
        """Key and section of the criterion on the translations, also if it is a base criterion."""
        if isinstance(self.criterion, ModelAndBaseConfig):
            return "criterion.base", self.criterion.base
        return "criterion", self.criterion

    @property
    def distillation(self) -> DistillationConfig | None:
        """The base criterion if it is distillation, else None."""
        _, criterion = self.base_criterion
        return criterion if isinstance(criterion, DistillationConfig) else None

    @property
    def experts(self) -> list[str]:
        """Start symbols of the experts if the model is a mixture, else none."""
        _, criterion = self.base_criterion
        return criterion.experts if isinstance(criterion, HardEmConfig) else []

    @property
    def reads_language_model(self) -> bool:
        """Whether a new run takes the weights of the run `model.encoder_input.path`.

        Those of `train.init_from` include them unless something may be missing there.
        """
        if self.model.language_model is None:
            return False
        return self.train.init_from is None or bool(self.train.allow_missing)

    @property
    def num_passes(self) -> int:
        """How often the model reads each batch in training."""
        _, criterion = self.base_criterion
        if isinstance(criterion, CrossEntropyConfig | MinimumRiskConfig | HardEmConfig):
            return criterion.num_passes
        return 1

    @property
    def routes_by_language(self) -> bool:
        """Whether experts are chosen by the language tag at the start of the source."""
        return self.model.moe is not None and self.model.moe.router == "language"

    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, data: Any) -> Any:
        return with_defaults_of_task(upgrade(data)[0]) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_across_sections(self, info: ValidationInfo) -> ExperimentConfig:
        stand_ins = (info.context or {}).get(STAND_INS, frozenset())
        checks: tuple[tuple[set[str], Check], ...] = (
            ({"train", "model"}, self._expert_parallel_errors),
            ({"train", "model"}, self._clip_errors),
            ({"model", "data"}, self._language_errors),
            ({"model", "data"}, self._sharing_errors),
            ({"model", "data"}, self._position_errors),
            ({"train", "data"}, self._batch_errors),
            ({"scheduler", "train"}, self._schedule_errors),
            ({"criterion", "model", "data"}, partial(distillation_errors, self)),
            ({"criterion", "model"}, partial(weight_errors, self)),
            ({"criterion", "task"}, partial(pair_errors, self)),
            ({"criterion", "model", "data"}, partial(adaptive_errors, self)),
            ({"criterion", "data", "generation", "model"}, partial(mixture_errors, self)),
            ({"train", "model"}, self._adapter_errors),
            ({"model", "data"}, self._adapter_tag_errors),
            ({"train", "data"}, self._validation_errors),
            ({"task", "data", "model"}, self._task_errors),
            ({"task", "model", "data"}, lambda: side_errors(self)),
        )
        errors = [error for reads, check in checks if not reads & stand_ins for error in check()]
        if errors:
            raise FieldErrors(errors)
        return self

    def _expert_parallel_errors(self) -> list[tuple[str, str]]:
        ranks = self.train.expert_parallel
        moe = self.model.moe
        if ranks == 1:
            return []
        if moe is None:
            return [
                ("train.expert_parallel", f"{ranks}, but model.moe is null: a dense model needs 1")
            ]
        uneven = [n for n in moe.counts if n % ranks]
        if uneven:
            return [
                (
                    "train.expert_parallel",
                    f"{ranks} does not divide model.moe.num_experts {uneven[0]}",
                )
            ]
        return []

    def _clip_errors(self) -> list[tuple[str, str]]:
        if self.train.sparse_clip and self.model.moe is None:
            return [("train.sparse_clip", "applies to experts, but model.moe is null; use false")]
        return []

    def _language_errors(self) -> list[tuple[str, str]]:
        if not self.routes_by_language or self.data.vocab.source_side.user_symbols:
            return []
        return [
            (
                "model.moe.router",
                "language needs tags at the start of the source lines; list them in "
                "data.vocab.user_symbols, such as [<2de>, <2fr>]",
            )
        ]

    def _sharing_errors(self) -> list[tuple[str, str]]:
        if self.data.vocab.joint or not self.model.shares_inputs:
            return []
        if self.model.language_model is not None:  # in place of the table of the source
            return []
        return [
            (
                "model.share_embeddings",
                f"{self.model.share_embeddings}: source and target have vocabularies of their own "
                "(data.vocab.joint is false), so one table cannot serve both; use decoder or none",
            )
        ]

    def _lengths(self) -> dict[str, int]:
        return longest_examples(self.task, self.data)

    @property
    def longest_source(self) -> int:
        """Most tokens of a source to translate, end symbol included; longer ones are cut.

        A model that was trained on the beginnings of long sources gets no more of them here.
        """
        most = self.model.max_positions
        return most if self.data.long_pairs == "skip" else min(most, self.data.max_source_length)

    @property
    def shares_teacher(self) -> bool:
        """Whether a live teacher is spread over the ranks."""
        criterion = self.distillation
        return criterion is not None and (
            criterion.teacher_zero3 or criterion.teacher_expert_parallel > 1
        )

    @property
    def batch_tokens(self) -> int:
        """Maximum batch size per rank in tokens; if that is by trial, where the trial begins."""
        return self.train.most_tokens(max(self._lengths().values()))

    def _position_errors(self) -> list[tuple[str, str]]:
        positions = self.model.max_positions
        return [
            (key, f"{length} is more than model.max_positions {positions}")
            for key, length in self._lengths().items()
            if length > positions
        ]

    def _batch_errors(self) -> list[tuple[str, str]]:
        tokens = self.train.max_tokens
        if not isinstance(tokens, int):
            return []
        return [
            ("train.max_tokens", f"{tokens} is less than {key} {length}; raise it or lower {key}")
            for key, length in self._lengths().items()
            if length > tokens
        ]

    def _schedule_errors(self) -> list[tuple[str, str]]:
        scheduler = self.scheduler
        if not isinstance(scheduler, DecayingConfig):
            return []
        total = scheduler.total_updates or self.train.max_updates
        if isinstance(scheduler, WarmupStableDecayConfig):
            return self._decay_errors(scheduler, total)
        if scheduler.warmup_updates < total:
            return []
        return [
            (
                "scheduler.warmup_updates",
                f"{scheduler.warmup_updates} leaves nothing to decay over: "
                f"the schedule ends at update {total}",
            )
        ]

    def _decay_errors(
        self, scheduler: WarmupStableDecayConfig, total: int
    ) -> list[tuple[str, str]]:
        begin = total - scheduler.decay_updates(total)
        if scheduler.warmup_updates <= begin:
            return []
        message = f"{scheduler.warmup_updates} reaches into the decay, which begins at update "
        message += f"{begin}; lower it, or scheduler.decay_fraction"
        return [("scheduler.warmup_updates", message)]

    def _adapter_errors(self) -> list[tuple[str, str]]:
        adapters = self.model.adapters
        ids, used = ([], []) if adapters is None else (adapters.ids, adapters.used)
        errors = []
        for field, entries in (("freeze", self.train.freeze), ("trainable", self.train.trainable)):
            for name in (e.removeprefix(ADAPTERS) for e in entries if e.startswith(ADAPTERS)):
                if name not in ids:
                    known = f"there are {', '.join(ids)}" if ids else "model.adapters is null"
                    message = f"no adapter {name}{nearest(name, ids)}; {known}"
                    errors.append((f"train.{field}", message))
                elif field == "trainable" and name not in used:
                    message = f"no sentence passes through adapter {name}; let "
                    message += "model.adapters.active or model.adapters.tags name it"
                    errors.append((f"train.{field}", message))
        return errors

    def _adapter_tag_errors(self) -> list[tuple[str, str]]:
        adapters, known = self.model.adapters, self.data.vocab.source_side.user_symbols
        return [
            (
                f"model.adapters.tags.{tag}",
                f"not one of data.vocab.user_symbols{nearest(tag, known)}; add it there",
            )
            for tag in ({} if adapters is None else adapters.tags)
            if tag not in known
        ]

    def _task_errors(self) -> list[tuple[str, str]]:
        if isinstance(self.task, DenoisingConfig | MaskedLanguageModelingConfig):
            return list(noise_errors(self.task, self.data, self.model))
        return []

    def _stage_errors(self, known: list[str], why: str) -> Iterator[tuple[str, str]]:
        for number, stage in enumerate(self.data.mixing.stages):
            metric = None if stage.until is None else stage.until.metric
            if metric is not None and metric not in known:
                key = f"data.mixing.stages.{number}.until.metric"
                yield key, f"{metric} is never measured: {why}{nearest(metric, known)}"

    def _validation_errors(self) -> list[tuple[str, str]]:
        metrics, best = self.validation.metrics, self.validation.best
        if self.train.validate_every is None:
            return list(self._stage_errors([], "train.validate_every is null"))
        errors = list(self._stage_errors([*metrics, LOSS], "it is not in validation.metrics"))
        errors += metric_errors(self.task, metrics)
        if best != LOSS and best not in metrics:
            known = ", ".join(metrics) or "empty"
            errors.append(
                (
                    "validation.best",
                    f"{best}{nearest(best, [*metrics, LOSS])} is not in validation.metrics "
                    f"({known}); use one of them, or {LOSS}",
                )
            )
        text = [name for name in metrics if name in TEXT_METRICS]
        if text and not self.data.raw.entries("valid"):
            errors.append(
                (
                    "data.raw.valid",
                    f"missing: validation {', '.join(text)} is measured against the raw "
                    "reference; give the files or set validation.metrics=[] and "
                    f"validation.best={LOSS}",
                )
            )
        return errors
