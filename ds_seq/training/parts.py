"""The model of a run at its start, and the engine that trains it."""

from __future__ import annotations

from torch import nn

from ds_seq.criterions import Criterion
from ds_seq.distributed import World
from ds_seq.models import attach_adapters, build_model
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.optim import build_optimizer, build_scheduler, learning_rate, weight_decay
from ds_seq.optim.param_groups import parameter_groups
from ds_seq.surgery.upcycle import start_from
from ds_seq.tasks.base import Task
from ds_seq.training.engine import Engine
from ds_seq.training.run_folder import RunSetup
from ds_seq.training.trainable import freeze
from ds_seq.weights.fill import load_weights


def build_start(setup: RunSetup, task: Task, world: World) -> tuple[nn.Module, list[str]]:
    """Build the model with the weights with which the run starts or resumes.

    Returns:
        The model, and lines about weights that it takes from another run.
    """
    lines: list[str] = []
    train, sizes = setup.config.train, task.tokenizers.sizes
    part = world.rank % train.expert_parallel
    model = build_model(setup.config.model, sizes, train.expert_parallel, part, train.seed)
    attach_adapters(model, setup.config.model, task.tokenizers.source)
    if setup.checkpoint is not None:
        load_weights(model, setup.checkpoint, checked=True)
    elif train.init_from is not None:
        lines = start_from(model, setup.config, task.tokenizers.fingerprint)
    freeze(model, train.freeze, train.trainable)
    return model, lines


def build_engine(setup: RunSetup, model: nn.Module, criterion: Criterion) -> Engine:
    """Build the engine of a model, and tell the criterion how it is used; a collective."""
    config, train = setup.config, setup.config.train
    criterion.is_collective = config.shares_teacher
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
    if train.ema is not None:
        from ds_seq.training.ema import Ema

        engine.ema = Ema(engine, train.ema)
    return engine
