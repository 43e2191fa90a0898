"""Train a model: build task, model, criterion, engine and trainer from a config, in this order."""

# ruff: noqa: E402 - DeepSpeed is imported first, see below

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ds_seq import distributed

# modules below import DeepSpeed, whose first import prints failed probes of the compiler
distributed.import_deepspeed()

from torch import nn

from ds_seq.config.changes import settings
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.needs import warmup_error
from ds_seq.criterions import Teacher, build_criterion
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.source import Dataset, untagged_rows
from ds_seq.data.stream import BatchStream
from ds_seq.distill.build import build_teacher
from ds_seq.distill.teacher import (
    CachedTeacher,
    LiveTeacher,
    Student,
    attach_cache,
)
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.generation.build import build_decoding
from ds_seq.generation.translate import Share
from ds_seq.models import build_model
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.optim import build_optimizer, build_scheduler, learning_rate, weight_decay
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.reports.moe_watch import layer_names
from ds_seq.scores.metric import Metric
from ds_seq.surgery.upcycle import start_from
from ds_seq.tasks import Task, build_task
from ds_seq.text.lines import read_parallel
from ds_seq.training.checkpoint import CheckpointStore, criterion_state, restore
from ds_seq.training.engine import Engine
from ds_seq.training.history import History, data_facts, run_facts
from ds_seq.training.provenance import describe_start, record_start
from ds_seq.training.run_folder import (
    RunSetup,
    check_vocab,
    set_up,
    set_up_history,
    write_run_files,
)
from ds_seq.training.run_log import RunLog
from ds_seq.training.state import full_shape
from ds_seq.training.trainable import FrozenCheck, describe_frozen, freeze
from ds_seq.training.trainer import Trainer
from ds_seq.training.validation import BestBy, Score, Validator, choose_metrics, score_by
from ds_seq.weights.fill import load_weights
from ds_seq.weights.source import CHECKPOINTS


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        reason: why it ended: `max_updates`, `max_epochs`, `max_hours`, `patience` or `signal`.
        update: number of the last update.
        best_score: score of the best validation; None without validation.
        best_by: name of that score.
        folder: folder of the run.
        figures: figures of the last validation; empty without validation.
        layer_names: names of the layers with experts, in the order of the figures.
    """

    reason: str
    update: int
    best_score: float | None
    best_by: str
    folder: Path
    figures: dict[str, Any]
    layer_names: list[str]


def run_training(
    load: Callable[[], ExperimentConfig],
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: Sequence[str] = (),
) -> TrainingResult:
    """Train in one process, or in all processes that the launcher has started.

    The process group stays open because DeepSpeed cannot work with a second one; the process calls
    `distributed.shutdown` after its last training.

    Args:
        load: reads the experiment; called once errors of any rank are shared with all ranks.
        resume: resume from the run's last checkpoint, or start from scratch if there is none.
        overwrite: delete an earlier run of this name.
        allow_changes: options that may differ from those of the run that is resumed, although
            that makes nonsense of it; see `ds_seq.config.changes`.

    Raises:
        UserError: the experiment, its data or its run folder is invalid.
    """
    world = distributed.discover(os.environ)
    distributed.keep_freed_memory()
    distributed.init(world)
    distributed.quiet_deepspeed()
    with distributed.shared_errors():
        _check_options(resume, overwrite, allow_changes)
        setup = set_up(load(), world.size, resume, overwrite)
        made_of = run_facts(setup.config, world.size)
    distributed.require_same(settings(setup.config, made_of), "experiments")
    with distributed.shared_errors():
        task = build_task(setup.config.task, setup.config.data)
        train_set, valid_set = task.dataset("train"), _valid_set(task, setup.config)
        _check_tags(setup.config, task, {"training": train_set, "validation": valid_set})
        made_of |= data_facts(train_set, valid_set)
        cached = _cached_teacher(setup.config, train_set, valid_set)
        if setup.checkpoint is not None:
            check_vocab(setup.folder, task.tokenizers)
        history = set_up_history(setup, made_of, allow_changes)
    distributed.require_same(made_of | {"from": str(setup.checkpoint)}, "data or checkpoints")
    teacher = cached or _live_teacher(setup.config, task, world)
    trainer = _build(setup, history, task, train_set, valid_set, teacher, world)
    _announce(trainer, setup, history, train_set, world)
    if teacher is not None:
        trainer.log.say(teacher.describe())
    check = FrozenCheck(trainer.engine.module) if setup.config.train.freeze else None
    reason = trainer.fit()
    trainer.log.note(f"stopped at update {trainer.update} ({reason})")
    if check is not None:
        check.verify()
    return TrainingResult(
        reason,
        trainer.update,
        trainer.best_score,
        trainer.best.figure,
        setup.folder,
        trainer.last_validation,
        layer_names(trainer.engine.module),
    )


def _check_options(resume: bool, overwrite: bool, allow_changes: Sequence[str]) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one of them")
    if allow_changes and not resume:
        raise UserError("--allow-change: only applies to a run that resumes; add --resume")


def _valid_set(task: Task, config: ExperimentConfig) -> Dataset | None:
    if config.train.validate_every is None:
        return None
    if config.validation.metrics:
        for pair in config.data.raw.valid:  # report unreadable text early, not in a validation
            read_parallel(pair.source, pair.target)
    return task.dataset("valid")


def _check_tags(
    config: ExperimentConfig, task: Task, datasets: Mapping[str, Dataset | None]
) -> None:
    """Refuse sources without a tag for a router that chooses experts by it."""
    for name, dataset in datasets.items() if config.routes_by_language else ():
        if not isinstance(dataset, ParallelDataset):
            continue
        untagged, size = untagged_rows(dataset.source, task.tokenizers.source.tag_ids)
        if len(untagged):
            raise UserError(
                "model.moe.router: language chooses experts by the tag at the start of a source, "
                f"but {len(untagged):,} of {size:,} {name} sources begin with none of "
                f"data.vocab.user_symbols (the first is pair {untagged[0] + 1:,}); add the tags to "
                "the text, or choose another router"
            )


def _cached_teacher(
    config: ExperimentConfig, train_set: Dataset, valid_set: Dataset | None
) -> CachedTeacher | None:
    """Attach the teacher's cached outputs to all batches if the criterion uses a cache."""
    criterion = config.distillation
    if criterion is None or criterion.cache is None:
        return None
    return attach_cache(criterion.cache, train_set, valid_set)


def _live_teacher(config: ExperimentConfig, task: Task, world: World) -> LiveTeacher | None:
    """Load the criterion's live teachers onto this rank's device; a collective."""
    criterion, data = config.distillation, config.data
    if criterion is None:
        return None
    max_length = max(data.max_source_length, data.max_target_length)
    student = Student(config.model, max_length, (data.source_lang, data.target_lang))
    return build_teacher(criterion, task.tokenizers.fingerprint, world.device, student)


def _build(
    setup: RunSetup,
    history: History,
    task: Task,
    train_set: Dataset,
    valid_set: Dataset | None,
    teacher: Teacher | None,
    world: World,
) -> Trainer:
    """Build model, engine and trainer; a collective."""
    config, train = setup.config, setup.config.train
    with distributed.shared_errors():
        model = _model(setup, task, world)
        batches = _train_batches(config, task, train_set, world)
        tags = sorted(task.tokenizers.source.tag_ids)
        criterion = build_criterion(config.criterion, teacher, tags)
        names = [] if train.validate_every is None else config.validation.metrics
        metrics, best = choose_metrics(task, names, config.validation.best)
    connect_expert_parallel(model, train.expert_parallel)
    lr = learning_rate(config.optimizer)
    engine = Engine(
        model,
        lambda groups: build_optimizer(config.optimizer, groups),
        parameter_groups(model, weight_decay(config.optimizer)),
        build_scheduler(config.scheduler, lr, train.max_updates),
        setup.engine_config,
        expert_parallel=train.expert_parallel,
        sparse_clip=train.sparse_clip,
        capture=criterion.capture,
    )
    with distributed.shared_errors():
        progress = None
        if setup.checkpoint is not None:
            progress = restore(engine, setup.checkpoint)
            criterion.load_state(criterion_state(setup.checkpoint))
        if world.is_first:
            write_run_files(setup, task.tokenizers, history)
    store = _store(setup, history, best, task.tokenizers.fingerprint)
    if world.is_first:
        store.discard_incomplete()
    done = 0 if progress is None else int(progress["update"])
    log = _open_log(setup, batches, world, done)
    validator = Validator(
        engine,
        criterion,
        lambda: _valid_batches(config, task, valid_set, world),
        _scorer(config, task, metrics, engine, world),
        config.validation.max_sentences,
    )
    trainer = Trainer(engine, criterion, batches, validator, store, log, train, best)
    if progress is not None:
        if not history.scores_compare:
            progress |= {"best_by": None}
        trainer.load_state_dict(progress)
    return trainer


def _store(setup: RunSetup, history: History, best: BestBy, vocab_hash: str) -> CheckpointStore:
    train = setup.config.train
    return CheckpointStore(
        setup.folder / CHECKPOINTS,
        train.keep_last,
        train.keep_best,
        best.higher_is_better,
        vocab_hash,
        best.figure,
        history.scores_compare,
    )


def _open_log(setup: RunSetup, batches: BatchStream, world: World, done: int) -> RunLog:
    """Open the log of the run, which starts after update `done`, and record the start."""
    train = setup.config.train
    last = train.max_updates
    if train.max_epochs is not None:
        last = min(last, train.max_epochs * batches.updates_per_epoch)
    log = RunLog(setup.folder, world.is_first, train.tensorboard, last, done)
    if world.is_first:
        log.say(describe_start(record_start(setup.folder, world, done)))
    return log


def _model(setup: RunSetup, task: Task, world: World) -> nn.Module:
    train, size = setup.config.train, task.tokenizers.size
    part = world.rank % train.expert_parallel
    model = build_model(setup.config.model, size, train.expert_parallel, part, train.seed)
    if setup.checkpoint is not None:
        load_weights(model, setup.checkpoint)
    elif train.init_from is not None:
        start_from(model, setup.config, task.tokenizers.fingerprint)
    freeze(model, train.freeze)
    return model


def _train_batches(
    config: ExperimentConfig, task: Task, dataset: Dataset, world: World
) -> BatchStream:
    train = config.train
    sampler = TokenBatchSampler(
        dataset.lengths,
        train.max_tokens,
        train.max_sentences,
        seed=train.seed,
        rank=world.rank,
        world_size=world.size,
        accumulate=train.accumulate,
    )
    return BatchStream(
        partial(task.collate, dataset),
        sampler,
        num_prefetch=train.num_prefetch,
        pin=world.device.type == "cuda",
        max_epochs=train.max_epochs,
    )


def _valid_batches(
    config: ExperimentConfig, task: Task, dataset: Dataset | None, world: World
) -> Iterator[Batch]:
    """Yield this rank's validation batches, the same number on every rank."""
    assert dataset is not None, "validation needs train.validate_every"
    sampler = TokenBatchSampler(
        dataset.lengths,
        config.train.max_tokens,
        config.train.max_sentences,
        rank=world.rank,
        world_size=world.size,
        accumulate=1,
    )
    for indices in sampler.epoch(0):
        yield task.collate(dataset, indices)


def _scorer(
    config: ExperimentConfig, task: Task, metrics: Sequence[Metric], engine: Engine, world: World
) -> Score | None:
    """Return the scorer of the validation split, which decodes as `generate` does, or None."""
    positions = config.model.max_positions
    _, search, limits = build_decoding(config.generation, task.symbols, positions)
    any_rank = distributed.any_rank if engine.forward_is_collective else None
    return score_by(
        task, metrics, search, limits, engine.device, Share(world.rank, world.size, any_rank)
    )


def _announce(
    trainer: Trainer, setup: RunSetup, history: History, dataset: Dataset, world: World
) -> None:
    train, engine = setup.config.train, trainer.engine
    total = sum(full_shape(parameter).numel() for parameter in engine.module.parameters())
    left_out = f" ({dataset.num_left_out:,} too long)" if dataset.num_left_out else ""
    trainer.log.say(
        f"{setup.config.name}: {total:,} parameters on this rank; "
        f"{len(dataset):,} pairs{left_out}, "
        f"{trainer.batches.updates_per_epoch:,} updates per epoch; {world.size} rank(s), "
        f"expert parallel {train.expert_parallel}, ZeRO {engine.zero_stage}, {train.precision}, "
        f"{world.device.type}"
    )
    if (warning := warmup_error(setup.config)) is not None:
        trainer.log.say(f"warning: {warning}")
    if setup.checkpoint is not None:
        trainer.log.say(f"resuming at update {trainer.update} of {train.max_updates}")
        for note in history.notes:
            trainer.log.say(note)
    elif train.init_from is not None:
        trainer.log.say(f"starting with the weights of {train.init_from}")
    if train.freeze:
        is_drawn = setup.checkpoint is None and train.init_from is None
        trainer.log.say(describe_frozen(engine.module, train.freeze, is_drawn))
