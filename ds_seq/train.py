"""Train a model: ``ds-seq train EXP.yaml``, or this file under a launcher.

    deepspeed --num_gpus 8 ds_seq/train.py EXP.yaml [key=value ...]
    torchrun --nproc_per_node 8 ds_seq/train.py EXP.yaml
    srun python ds_seq/train.py EXP.yaml
    mpirun -n 8 python ds_seq/train.py EXP.yaml

The composition root: from config to task, model, criterion, engine and trainer, in this order.
"""

# ruff: noqa: E402 - DeepSpeed is imported first, see below

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # As a script, Python puts this folder first, where `data`, `config` or `models` would shadow
    # top-level modules of others. The repository belongs there.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ds_seq import distributed
from ds_seq.errors import UserError, run_command

# modules below import DeepSpeed, whose first import prints failed probes of the compiler
distributed.import_deepspeed()

from torch import nn

from ds_seq.config.criterion import DistillationConfig, ModelAndBaseConfig
from ds_seq.config.deepspeed import engine_config_for
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.load import dump, load_experiment
from ds_seq.criterions import Teacher, build_criterion
from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.source import Dataset
from ds_seq.data.stream import BatchStream
from ds_seq.distill.teacher import (
    CachedTeacher,
    LiveTeacher,
    Student,
    attach_cache,
    load_teacher,
)
from ds_seq.distributed import World
from ds_seq.generation.build import build_limits, build_search
from ds_seq.generation.translate import Share
from ds_seq.models import build_model
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.optim import build_optimizer, build_scheduler, learning_rate, weight_decay
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.reports.metrics import load_table, metric_lines
from ds_seq.reports.moe_watch import layer_names
from ds_seq.runs.formats.ds_seq import CONFIG_FILE, EXPORT_FILE, find_checkpoint, open_tokenizers
from ds_seq.scores.metric import Metric
from ds_seq.surgery.upcycle import start_from
from ds_seq.tasks import Task, build_task
from ds_seq.text.lines import read_parallel
from ds_seq.text.vocab_file import VOCAB_FILE, save_tokenizer
from ds_seq.training.checkpoint import CheckpointStore, criterion_state, restore
from ds_seq.training.engine import Engine
from ds_seq.training.run_log import RunLog
from ds_seq.training.state import full_shape
from ds_seq.training.trainable import FrozenCheck, describe_frozen, freeze
from ds_seq.training.trainer import Trainer
from ds_seq.training.validation import Score, Validator, choose_metrics, score_by
from ds_seq.weights.fill import load_weights
from ds_seq.weights.source import CHECKPOINTS, INDEX_FILE

_OLD_FILES = ("metrics.jsonl", "tensorboard", CHECKPOINTS)


@dataclass(frozen=True)
class _Setup:
    """What is settled before anything is built."""

    config: ExperimentConfig
    engine_config: dict[str, Any]
    folder: Path
    checkpoint: Path | None
    overwrite: bool


def main(argv: Sequence[str]) -> int:
    """The command ``ds-seq train``; returns the exit code."""
    args = _parser().parse_intermixed_args(argv)
    world = distributed.discover(os.environ)
    distributed.keep_freed_memory()
    distributed.init(world)
    distributed.quiet_deepspeed()
    try:
        with distributed.shared_errors():
            setup = _set_up(args, world)
            task = build_task(setup.config.task, setup.config.data)
            train_set, valid_set = task.dataset("train"), _valid_set(task, setup.config)
            cached = _cached_teacher(setup.config, train_set, valid_set)
            if setup.checkpoint is not None:
                _check_vocab(setup.folder, task)
        teacher = cached or _live_teacher(setup.config, task, world)
        trainer = _build(setup, task, train_set, valid_set, teacher, world)
        _announce(trainer, setup, train_set, world)
        if teacher is not None:
            trainer.log.say(teacher.describe())
        check = FrozenCheck(trainer.engine.module) if setup.config.train.freeze else None
        reason = trainer.fit()
        if check is not None:
            check.verify()
        if world.is_first:
            _report(trainer, setup.folder, reason)
    finally:
        distributed.shutdown()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds-seq train",
        description="Train a model; one process, or as many as the launcher starts.",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace single settings")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the run's last checkpoint; start from scratch where there is none yet",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete what an earlier run of this name has left"
    )
    # the deepspeed launcher puts it before all other arguments; the environment says the same
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def _set_up(args: argparse.Namespace, world: World) -> _Setup:
    """Read the files and look at the run folder; writes nothing."""
    if args.resume and args.overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one of them")
    config = load_experiment(args.experiment, args.overrides)
    engine_config = engine_config_for(config, world_size=world.size)
    folder = config.run_folder
    if (folder / EXPORT_FILE).exists():
        raise UserError(f"{folder}: holds an exported model; give the run another name=")
    has_run = any((folder / name).exists() for name in _OLD_FILES)
    if has_run and not (args.resume or args.overwrite):
        raise UserError(
            f"{folder}: holds an earlier run; give --resume to go on with it, --overwrite to "
            "delete it, or another name="
        )
    checkpoint = None
    if args.resume and (folder / CHECKPOINTS / INDEX_FILE).is_file():
        checkpoint = find_checkpoint(folder, "last")
    return _Setup(config, engine_config, folder, checkpoint, args.overwrite)


def _check_vocab(folder: Path, task: Task) -> None:
    """Refuse to go on with other subwords: the same ids would mean other things."""
    old, new = open_tokenizers(folder).fingerprint, task.tokenizers.fingerprint
    if old != new:
        raise UserError(
            f"{folder}: was trained with vocabulary {old[:12]}, the data have {new[:12]}; "
            "give --resume the data of the run, or start another run with another name="
        )


def _delete_run(folder: Path) -> None:
    for name in _OLD_FILES:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()


def _valid_set(task: Task, config: ExperimentConfig) -> Dataset | None:
    if config.train.validate_every is None:
        return None
    if config.validation.metrics:
        for pair in config.data.raw.valid:  # unreadable text is told now, not at a validation
            read_parallel(pair.source, pair.target)
    return task.dataset("valid")


def _write_run_files(setup: _Setup, task: Task) -> None:
    """Make the folder self-sufficient: it alone is enough to translate.

    Called when nothing can be wrong with the input any more, so that a mistake costs no old run.
    """
    folder = setup.folder
    try:
        if setup.overwrite:
            _delete_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(dump(setup.config), encoding="utf-8")
        (folder / "deepspeed.json").write_text(
            json.dumps(setup.engine_config, indent=2) + "\n", encoding="utf-8"
        )
        save_tokenizer(task.tokenizers.target, folder / VOCAB_FILE)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the run folder ({error.strerror})") from error


def _distillation(config: ExperimentConfig) -> DistillationConfig | None:
    """The criterion's distillation, wherever in it that stands."""
    criterion: Any = config.criterion
    if isinstance(criterion, ModelAndBaseConfig):
        criterion = criterion.base
    return criterion if isinstance(criterion, DistillationConfig) else None


def _cached_teacher(
    config: ExperimentConfig, train_set: Dataset, valid_set: Dataset | None
) -> CachedTeacher | None:
    """Let all batches bring what the teacher once said, where the criterion wants that."""
    criterion = _distillation(config)
    if criterion is None or criterion.cache is None:
        return None
    return attach_cache(criterion.cache, train_set, valid_set)


def _live_teacher(config: ExperimentConfig, task: Task, world: World) -> LiveTeacher | None:
    """The frozen models that the criterion asks for, on this rank's device; a collective."""
    criterion, data = _distillation(config), config.data
    if criterion is None:
        return None
    student = Student(config.model, max(data.max_source_length, data.max_target_length))
    return load_teacher(criterion, task.tokenizers.fingerprint, world.device, student)


def _build(
    setup: _Setup,
    task: Task,
    train_set: Dataset,
    valid_set: Dataset | None,
    teacher: Teacher | None,
    world: World,
) -> Trainer:
    """Model, engine and trainer; a collective."""
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
            _write_run_files(setup, task)
    store = CheckpointStore(
        setup.folder / CHECKPOINTS,
        train.keep_last,
        train.keep_best,
        best.higher_is_better,
        task.tokenizers.fingerprint,
        best.figure,
    )
    if world.is_first:
        store.discard_incomplete()
    done = 0 if progress is None else int(progress["update"])
    log = RunLog(setup.folder, world.is_first, train.tensorboard, train.max_updates, done)
    validator = Validator(
        engine,
        criterion,
        lambda: _valid_batches(config, task, valid_set, world),
        _scorer(config, task, metrics, engine, world),
        config.validation.max_sentences,
    )
    trainer = Trainer(engine, criterion, batches, validator, store, log, train, best)
    if progress is not None:
        trainer.load_state_dict(progress)
    return trainer


def _model(setup: _Setup, task: Task, world: World) -> nn.Module:
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
    """This rank's validation batches, the same number on every rank."""
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
    """Score the validation split with the generation's own code; None without a metric."""
    positions = config.model.max_positions
    search = build_search(config.generation, task.symbols, positions)
    limits = build_limits(config.generation, positions)
    any_rank = distributed.any_rank if engine.forward_is_collective else None
    return score_by(
        task, metrics, search, limits, engine.device, Share(world.rank, world.size, any_rank)
    )


def _announce(trainer: Trainer, setup: _Setup, dataset: Dataset, world: World) -> None:
    train, engine = setup.config.train, trainer.engine
    total = sum(full_shape(parameter).numel() for parameter in engine.module.parameters())
    left_out = f" ({dataset.num_left_out:,} too long)" if dataset.num_left_out else ""
    trainer.log.say(
        f"{setup.config.name}: {total:,} parameters on this rank; "
        f"{len(dataset):,} pairs{left_out}, "
        f"{trainer.batches.updates_per_epoch:,} updates an epoch; {world.size} rank(s), "
        f"expert parallel {train.expert_parallel}, ZeRO {engine.zero_stage}, {train.precision}, "
        f"{world.device.type}"
    )
    if setup.checkpoint is not None:
        trainer.log.say(f"resuming at update {trainer.update} of {train.max_updates}")
    elif train.init_from is not None:
        trainer.log.say(f"starting with the weights of {train.init_from}")
    if train.freeze:
        is_drawn = setup.checkpoint is None and train.init_from is None
        trainer.log.say(describe_frozen(engine.module, train.freeze, is_drawn))


def _report(trainer: Trainer, folder: Path, reason: str) -> None:
    figures = trainer.last_validation
    if trainer.update and figures:
        print(load_table(figures, layer_names(trainer.engine.module)) or "", file=sys.stderr)
        for line in metric_lines(figures):
            print(line, file=sys.stderr)
    print(f"stopped at update {trainer.update} ({reason}); run folder {folder}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
