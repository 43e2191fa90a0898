"""The model of a run at its start, its criterion, and the engine that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import nn

from ds_seq.config.criterion import HardEmConfig, MinimumRiskConfig
from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.model import TransformerConfig
from ds_seq.criterions import Criterion, Teacher, build_criterion
from ds_seq.data.corpora import CorporaDataset
from ds_seq.data.source import Dataset
from ds_seq.distill.projection import attach_projection, build_projection
from ds_seq.distill.teacher import LiveTeacher
from ds_seq.distributed import World
from ds_seq.errors import UserError
from ds_seq.models import attach_adapters, attach_pieces, build_model
from ds_seq.models.seq2seq import Seq2SeqTransformer
from ds_seq.moe.engine import connect_expert_parallel
from ds_seq.names import EXPERT_PRIOR, HIDDEN_PROJECTION, TRAINING_ONLY
from ds_seq.optim import (
    build_optimizer,
    build_scheduler,
    learning_rate,
    lr_factors,
    weight_decay,
)
from ds_seq.optim.param_groups import parameter_groups, with_lr_factors
from ds_seq.surgery.upcycle import start_from
from ds_seq.tasks.base import Task
from ds_seq.text.tokenizer import Tokenizer, piece_ids
from ds_seq.training.engine import Engine
from ds_seq.training.run_folder import RunSetup
from ds_seq.training.trainable import check_known, freeze
from ds_seq.weights.fill import Allowed, load_weights
from ds_seq.weights.selection import Selection

# what a run that has learned a projection or a prior leaves behind if it resumes without one
_TRAINING_LEFT = Allowed(
    unexpected=Selection(TRAINING_ONLY),
    hint=f"; a projection ({HIDDEN_PROJECTION}) or a learned prior ({EXPERT_PRIOR}) cannot be "
    "added at a resume, so start another run with train.init_from",
)

if TYPE_CHECKING:
    from ds_seq.criterions.generator import Generation
    from ds_seq.modules.multiway import Markers


def build_start(
    setup: RunSetup, task: Task, world: World, teacher: Teacher | None = None
) -> tuple[nn.Module, list[str]]:
    """Build the model with the weights with which the run starts or resumes.

    Returns:
        The model, and lines about weights that it takes from another run.
    """
    lines: list[str] = []
    train, sizes = setup.config.train, task.tokenizers.sizes
    part = world.rank % train.expert_parallel
    model = build_model(setup.config.model, sizes, train.expert_parallel, part, train.seed)
    attach_adapters(model, setup.config.model, task.tokenizers.source)
    attach_pieces(model, setup.config.model, task.tokenizers.source)
    read = setup.config.model.language_model
    frozen: tuple[str, ...] = ()
    if read is not None:
        from ds_seq.models.encoder_input import LanguageModelInput  # only where it is used
        from ds_seq.surgery.encoder_input import read_language_model

        language_model = model.get_submodule("encoder_input")
        assert isinstance(language_model, LanguageModelInput)
        if setup.checkpoint is None and setup.config.reads_language_model:
            lines.append(read_language_model(language_model, read, task.tokenizers.source))
        frozen = ("encoder_input.model",) if read.weights == "frozen" else ()
    if setup.checkpoint is None and train.init_from is not None:
        lines += start_from(model, setup.config, task.tokenizers.fingerprint)
    multiway = setup.config.model.multiway
    markers = dict(model.named_children()).get("markers")  # an external model may have none
    if multiway is not None and markers is not None and setup.checkpoint is None:
        _mark(cast("Markers", markers), multiway.markers, task.tokenizers.source)
    freeze(model, (*train.freeze, *frozen), train.trainable)
    if isinstance(teacher, LiveTeacher):
        lines += _attach_projection(model, setup, teacher)
    lines += _attach_prior(model, setup.config)
    if setup.checkpoint is not None:
        load_weights(model, setup.checkpoint, checked=True, allowed=_TRAINING_LEFT)
    return model, lines


def _attach_projection(model: nn.Module, setup: RunSetup, teacher: LiveTeacher) -> list[str]:
    """Add the projection of hidden states that a student needs to imitate its teacher."""
    projection = build_projection(setup.config, teacher.width)
    if projection is None:
        return []
    attach_projection(model, projection)
    size = sum(parameter.numel() for parameter in projection.parameters())
    return [f"hidden.projection: {size:,} parameters, which only the training has"]


def _attach_prior(model: nn.Module, config: ExperimentConfig) -> list[str]:
    """Add the prior that a mixture learns."""
    where, base = config.base_criterion
    if not isinstance(base, HardEmConfig) or base.prior == "uniform":
        return []
    from ds_seq.models.expert_prior import attach_prior  # only where it is used

    section = config.model
    assert isinstance(model, Seq2SeqTransformer) and isinstance(section, TransformerConfig)
    sizes = (section.d_model, len(base.experts))
    size = attach_prior(model, *sizes, section.dropout, config.train.seed)
    return [f"{where}.prior: {size:,} parameters, which only the training has"]


def _mark(model: Markers, markers: Mapping[str, int], tokenizer: Tokenizer) -> None:
    """Tell a model which ids choose a set of its parameters; saved with its weights."""
    ids = piece_ids(tokenizer)
    for marker in markers:
        if marker not in ids:
            raise UserError(
                f"model.multiway.markers: {marker!r} is no token of the source vocabulary; add it "
                "to data.vocab.user_symbols and prepare the data again, or name one that is"
            )
    model.mark({ids[piece]: chosen for piece, chosen in markers.items()})


def criterion_of(
    config: ExperimentConfig, task: Task, teacher: Teacher | None, dataset: Dataset
) -> Criterion:
    """Build the criterion of an experiment; one that generates uses its search and vocabulary.

    Args:
        config: the experiment.
        task: its task.
        teacher: teacher for distillation.
        dataset: the training examples.
    """
    tags = sorted(task.tokenizers.source.tag_ids)
    generation, is_adaptive = _generation_of(config, task), config.model.adaptive_bands is not None
    criterion = build_criterion(config.criterion, teacher, tags, generation, is_adaptive)
    if all(corpus.back_translate is None for corpus in config.data.corpora.values()):
        return criterion
    # only where it is used
    from ds_seq.training.back_translation import with_back_translation

    assert isinstance(dataset, CorporaDataset), "corpora have names"
    return with_back_translation(criterion, config, task, dataset)


def _generation_of(config: ExperimentConfig, task: Task) -> Generation | None:
    _, base = config.base_criterion
    if not isinstance(base, MinimumRiskConfig | HardEmConfig):
        return None
    # only where it is used
    from ds_seq.criterions.generator import Generation
    from ds_seq.generation.build import build_search

    longest = min(config.model.max_positions, config.data.max_target_length)
    search = build_search(config.generation, task.symbols, longest)
    tokenizer, seed = task.tokenizers.target, config.train.seed
    return Generation(search, tokenizer, config.data.target_lang, seed)


def build_engine(setup: RunSetup, model: nn.Module, criterion: Criterion) -> Engine:
    """Build the engine of a model, and tell the criterion how it is used; a collective."""
    config, train = setup.config, setup.config.train
    criterion.is_collective = config.shares_teacher
    connect_expert_parallel(model, train.expert_parallel)
    lr, factors = learning_rate(config.optimizer), lr_factors(config.optimizer)
    check_known(model, Selection(factors), "optimizer.lr_factors")
    own = parameter_groups(model, weight_decay(config.optimizer))
    engine = Engine(
        model,
        lambda groups: build_optimizer(config.optimizer, groups),
        with_lr_factors(own, model, factors),
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
