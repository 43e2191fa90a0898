"""Train a model: build task, model, criterion, engine and trainer from a config, in this order."""

# ruff: noqa: E402 - DeepSpeed is imported first, see below

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ds_seq import distributed

# modules below import DeepSpeed, whose first import prints failed probes of the compiler
distributed.import_deepspeed()


from ds_seq.config.changes import TEACHER, settings
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.notes import notes
from ds_seq.config.sides import longest_examples
from ds_seq.config.world import on_world
from ds_seq.criterions import Teacher
from ds_seq.data.batch import ParallelDataset
from ds_seq.data.source import Dataset
from ds_seq.data.text import TextDataset
from ds_seq.distill.build import build_teacher
from ds_seq.distill.projection import without_projection
from ds_seq.distill.teacher import CachedTeacher, LiveTeacher, Student, attach_cache
from ds_seq.distributed import World
from ds_seq.generation.build import build_decoding
from ds_seq.generation.translate import Share
from ds_seq.reports.moe_watch import layer_names
from ds_seq.scores.metric import Metric
from ds_seq.tasks import build_task
from ds_seq.tasks.base import Task
from ds_seq.text.experts import expert_ids
from ds_seq.training.batch_ids import pair_numbers
from ds_seq.training.divergence import Divergence
from ds_seq.training.engine import Engine
from ds_seq.training.history import History, data_facts, run_facts, teacher_fingerprint
from ds_seq.training.inputs import (
    check_tags,
    empty_batches,
    open_share,
    train_batches,
    valid_batches,
    validation_set,
)
from ds_seq.training.memory import BUILDING_ADVICE, TEACHER_ADVICE, explain
from ds_seq.training.opening import open_log, open_saves
from ds_seq.training.parts import build_engine, build_start, criterion_of
from ds_seq.training.progress import Window, costs_of
from ds_seq.training.restore import criterion_state, restore
from ds_seq.training.resuming import check_options, choose_start
from ds_seq.training.returns import Returns
from ds_seq.training.run_folder import (
    RunSetup,
    check_vocab,
    lock_run,
    set_up,
    set_up_history,
    write_run_files,
)
from ds_seq.training.run_log import RunLog
from ds_seq.training.stages import StageWatch
from ds_seq.training.state import full_shape
from ds_seq.training.trackers import OnFigures
from ds_seq.training.trainable import FrozenCheck, describe_frozen, has_frozen
from ds_seq.training.trainer import Trainer
from ds_seq.training.trial import with_batch_size
from ds_seq.training.validation import Score, Validator, choose_metrics, score_by


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
    checkpoint: str | None = None,
    on_figures: OnFigures | None = None,
) -> TrainingResult:
    """Train in one process, or in all processes that the launcher has started.

    The process group stays open because DeepSpeed cannot work with a second one; the process calls
    `distributed.shutdown` after its last training.

    Args:
        load: reads the experiment; called once errors of any rank are shared with all ranks.
        resume: resume from the run's newest checkpoint that is not damaged, or start from scratch
            if there is none.
        overwrite: delete an earlier run of this name.
        allow_changes: options that may differ from those of the run that is resumed, although
            that makes nonsense of it; see `ds_seq.config.changes`.
        checkpoint: with `resume`, the checkpoint to resume from: `best`, `last`, a name or a path.
        on_figures: called on rank 0 with update and figures; one that fails is left out.

    Raises:
        UserError: the experiment, its data or its run folder is invalid, or another training uses
            the folder.
    """
    world = distributed.discover(os.environ)
    distributed.keep_freed_memory()
    distributed.init(world)
    distributed.quiet_deepspeed()
    with distributed.watched(world) as watchdog:
        lock = None
        with distributed.shared_errors():
            check_options(resume, overwrite, allow_changes, checkpoint)
            config = on_world(load(), world.size)
            made_of = run_facts(config, world.size)
        distributed.keep_few_kernels(has_experts=bool(config.model.num_moe_layers))
        distributed.require_same(settings(config, made_of), "experiments")
        watchdog.limit(config.train.hang_seconds)
        with distributed.shared_errors():
            if world.is_first:
                lock = lock_run(config.run_folder)
        with lock or nullcontext():
            start, problems = (
                choose_start(config.run_folder, checkpoint, world) if resume else (None, [])
            )
            with distributed.shared_errors():
                setup = set_up(config, world.size, resume, overwrite, start)
            setup = replace(setup, on_figures=on_figures)
            return _train(setup, made_of, allow_changes, problems, world)


def _train(
    setup: RunSetup,
    made_of: dict[str, Any],
    allow_changes: Sequence[str],
    problems: Sequence[str],
    world: World,
) -> TrainingResult:
    with distributed.shared_errors():
        task = build_task(setup.config.task, setup.config.data)
        train_set, valid_set = task.dataset("train"), validation_set(task, setup.config)
        check_tags(setup.config, task, {"training": train_set, "validation": valid_set})
        made_of |= data_facts(train_set, valid_set)
        cached = _cached_teacher(setup.config, train_set, valid_set)
        if setup.checkpoint is not None:
            check_vocab(setup.folder, setup.checkpoint, task.tokenizers)
        # a large file, so only one rank reads it
        weights = teacher_fingerprint(setup.config, cached) if world.is_first else None
    made_of[TEACHER] = distributed.broadcast_object(weights)
    with distributed.shared_errors():
        history = set_up_history(setup, made_of, allow_changes)
    distributed.require_same(made_of | {"from": str(setup.checkpoint)}, "data or checkpoints")
    try:
        teacher = cached or _live_teacher(setup.config, task, world)
    except (RuntimeError, MemoryError) as error:
        explain(error, "while the teacher was loaded", TEACHER_ADVICE)
        raise
    try:
        trainer = _build(setup, history, task, train_set, valid_set, teacher, world, problems)
    except (RuntimeError, MemoryError) as error:
        explain(error, "while model and optimizer were built", BUILDING_ADVICE)
        raise
    _announce(trainer, setup, history, train_set, world)
    if teacher is not None:
        trainer.log.say(teacher.describe())
    check = FrozenCheck(trainer.engine.module) if has_frozen(trainer.engine.module) else None
    reason = trainer.fit()
    if check is not None:
        check.verify()
    return TrainingResult(
        reason,
        trainer.update,
        trainer.validations.best_score,
        trainer.validations.best.figure,
        setup.folder,
        trainer.validations.last,
        layer_names(trainer.engine.module),
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
    limits = longest_examples(config.task, data)
    student = Student(config.model, max(limits.values()), data.languages, limits=tuple(limits))
    return build_teacher(criterion, task.tokenizers.fingerprint, world.device, student)


def _build(
    setup: RunSetup,
    history: History,
    task: Task,
    train_set: Dataset,
    valid_set: Dataset | None,
    teacher: Teacher | None,
    world: World,
    problems: Sequence[str],
) -> Trainer:
    """Build model, engine and trainer; a collective."""
    config, share = setup.config, open_share(train_set, world)
    with distributed.shared_errors():
        model, start_notes = build_start(setup, task, world, teacher)
        is_auto = config.train.max_tokens == "auto"
        batches = None if is_auto else train_batches(config, task, train_set, world, share)
        criterion = criterion_of(config, task, teacher, train_set)
        names = [] if config.train.validate_every is None else config.validation.metrics
        metrics, best = choose_metrics(task, names, config.validation.best)
        ends = config.data.mixing.stage_metrics
        figures = {name: choose_metrics(task, names, name)[1] for name in ends}
    engine = build_engine(setup, model, criterion)
    with distributed.shared_errors():
        progress = None
        if setup.checkpoint is not None:
            progress = restore(engine, setup.checkpoint, checked=True)
            criterion.load_state(criterion_state(setup.checkpoint, checked=True))
        if world.is_first:
            write_run_files(setup, task.tokenizers, history)
    if batches is None:
        config = with_batch_size(config, engine, criterion, task, train_set, progress)
        with distributed.shared_errors():
            batches = train_batches(config, task, train_set, world, share)
    done = 0 if progress is None else int(progress["update"])
    saves, messages = open_saves(setup, history, best, task.tokenizers.fingerprint, done, world)
    saves.connect(engine)
    log = open_log(setup, batches, world, done)
    _say_first(log, (*problems, *messages, *empty_batches(batches)), start_notes)
    if is_auto:
        log.say(f"train.max_tokens: {config.train.max_tokens:,}, found by trial")
    validator = Validator(
        engine,
        criterion,
        lambda: valid_batches(config, task, valid_set, world),
        _scorer(config, task, metrics, engine, world),
        config.validation.max_sentences,
        valid_set.files if isinstance(valid_set, ParallelDataset | TextDataset) else {},
    )
    stages = StageWatch(batches, figures)
    divergence = Divergence(config.train, engine, log, partial(pair_numbers, train_set))
    returns = Returns(setup.folder, config.train, engine, criterion, log)
    parts = (engine, criterion, batches, validator, saves, log, config.train, best, stages)
    window = Window(costs_of(config, engine.device))
    trainer = Trainer(*parts, divergence, returns, window)
    if progress is not None:
        if not history.scores_compare:
            progress |= {"best_by": None}
        trainer.load_state_dict(progress)
    return trainer


def _say_first(log: RunLog, warnings: Sequence[str], notes: Sequence[str]) -> None:
    """Say what is known before the first update."""
    for message in warnings:
        log.say(f"ds-seq: warning: {message}")
    for note in notes:
        log.say(note)


def _scorer(
    config: ExperimentConfig, task: Task, metrics: Sequence[Metric], engine: Engine, world: World
) -> Score | None:
    """Return the scorer of the validation split, which decodes as `generate` does, or None."""
    positions = config.model.max_positions
    _, search, limits = build_decoding(
        config.generation,
        task.symbols,
        positions,
        config.longest_source,
        experts=expert_ids(task.tokenizers.target, config.experts) if config.experts else (),
    )
    if config.generation.lm is not None:
        from ds_seq.runs.fusion import with_language_model  # only where it is used

        tokenizer = task.tokenizers.target
        search = with_language_model(search, config.generation, tokenizer, engine.device)
    if config.generation.shortlist is not None:
        from ds_seq.runs.shortlist import with_shortlist  # only where it is used

        search = with_shortlist(search, config.generation, task.tokenizers, engine.device)
    any_rank = distributed.any_rank if engine.forward_is_collective else None
    return score_by(
        task,
        metrics,
        search,
        limits,
        engine.device,
        Share(world.rank, world.size, any_rank),
        config.validation.average,
    )


def _announce(
    trainer: Trainer, setup: RunSetup, history: History, dataset: Dataset, world: World
) -> None:
    train, engine = setup.config.train, trainer.engine
    total = sum(full_shape(each).numel() for _, each in without_projection(engine.module))
    left_out = f" ({dataset.num_left_out:,} too long)" if dataset.num_left_out else ""
    unit = "blocks" if isinstance(dataset, TextDataset) else "pairs"
    trainer.log.say(
        f"{setup.config.name}: {total:,} parameters on this rank; "
        f"{len(dataset):,} {unit}{left_out}, "
        f"{trainer.batches.updates_per_epoch:,} updates per epoch; {world.size} rank(s), "
        f"expert parallel {train.expert_parallel}, ZeRO {engine.zero_stage}, "
        f"{distributed.number_format(train.precision, world.device)}, {world.device.type}"
    )
    for note in notes(setup.config):
        trainer.log.say(f"note: {note}")
    if setup.checkpoint is not None:
        trainer.log.say(
            f"resuming at update {trainer.update} of {train.max_updates}, from {setup.checkpoint}"
        )
        for note in history.notes:
            trainer.log.say(note)
    elif train.init_from is not None:
        trainer.log.say(f"starting with the weights of {train.init_from}")
    if train.freeze or train.trainable:
        is_drawn = setup.checkpoint is None and train.init_from is None
        trainer.log.say(describe_frozen(engine.module, train.freeze, train.trainable, is_drawn))
