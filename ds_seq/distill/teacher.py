"""Teachers: one or several trained, frozen models from which a student learns.

Shapes: `N` real target tokens of a batch, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ds_seq import distributed
from ds_seq.config.model import ModelConfig
from ds_seq.criterions.layerwise import MatchedLayers
from ds_seq.criterions.teacher import TeacherOutput
from ds_seq.data.batch import Batch, ParallelDataset
from ds_seq.data.source import Dataset
from ds_seq.data.teacher_cache import TeacherCache
from ds_seq.errors import UserError
from ds_seq.models.layer_maps import LAYER_MAPS
from ds_seq.models.output import LayerOutputs
from ds_seq.names import AttentionKind, Capture, Precision
from ds_seq.runs.card import LoadedRun, StoredRun
from ds_seq.runs.open import DTYPES, default_dtype, load_run, open_run

# float32 numbers per block: on a CPU what fits into the cache, on a GPU less than a whole (N, V)
_CPU_NUMBERS, _GPU_NUMBERS = 1 << 18, 1 << 24


@dataclass(frozen=True)
class Student:
    """The properties of a student that a teacher must fit.

    Attributes:
        model: model config of the student.
        max_length: maximum length of a training sentence on either side, in tokens.
        languages: language codes of source and target.
        hidden: teacher layers whose hidden states the student imitates, or None.
        attention: teacher layers whose attention maps the student imitates, or None.
        projects: whether hidden states are mapped to the width of the teacher.
        attention_kinds: kinds of the attention maps that it imitates.
        limits: options that set `max_length`, for messages.
    """

    model: ModelConfig
    max_length: int
    languages: tuple[str, str]
    hidden: MatchedLayers | None = None
    attention: MatchedLayers | None = None
    projects: bool = False
    attention_kinds: Sequence[AttentionKind] = ()
    limits: Sequence[str] = ("data.max_source_length", "data.max_target_length")


@dataclass(frozen=True)
class Loading:
    """How teachers are loaded.

    Attributes:
        checkpoint: checkpoint to load from a run folder.
        precision: number format; None: as in their training on a GPU, fp32 on a CPU.
        expert_parallel: number of ranks that share the experts.
        zero3: whether the weights are partitioned over all ranks (ZeRO stage 3).
    """

    checkpoint: str
    precision: Precision | None
    expert_parallel: int
    zero3: bool


class LiveTeacher:
    """Frozen models that run on each batch; several models form an ensemble.

    Args:
        runs: the models, in evaluation mode.
        description: one-line description for the log.
        capture: layer outputs to return besides the logits; for a single model only.

    Attributes:
        runs: the models, in evaluation mode.
    """

    def __init__(
        self, runs: Sequence[LoadedRun], description: str = "", capture: Capture = "none"
    ) -> None:
        assert len(runs) == 1 or capture == "none"
        self.runs = runs
        self._description, self._capture = description, capture

    def describe(self) -> str:
        """Return a one-line description."""
        return self._description

    @property
    def width(self) -> int | None:
        """Width of the hidden states of the first model; None: it returns none."""
        return self.runs[0].model_config.state_width

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return logits (N, V) of one teacher, or float32 log-probabilities (N, V) of several.

        A collective if experts or weights are spread over ranks; then empty batches are run, too.
        """
        first, *others = self.runs
        logits, layers = self._read(first.model, batch)
        if others:
            total = _log_softmax(logits)
            del logits  # so that at most two (N, V) tensors exist at a time
            for run in others:
                _add_probabilities(total, self._read(run.model, batch)[0])
            logits = total.sub_(math.log(len(self.runs)))
        return TeacherOutput(logits, layers=layers)

    def _read(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LayerOutputs | None]:
        output = model(batch.inputs, self._capture)
        return output.logits, output.layers


class CachedTeacher:
    """A teacher whose outputs come with the batches.

    Args:
        cache: the cache that holds the outputs.
    """

    def __init__(self, cache: TeacherCache) -> None:
        self._cache = cache

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the cached outputs that `ParallelDataset.attach` has added to the batch."""
        return TeacherOutput(None, top=batch.teacher)

    @property
    def weights(self) -> list[str]:
        """Digests of the weights of the teachers that have written the cache."""
        return [teacher.weights for teacher in self._cache.manifest.teachers]

    def describe(self) -> str:
        """Return a one-line description."""
        return self._cache.describe()


def attach_cache(folder: str, train_set: Dataset, valid_set: Dataset | None) -> CachedTeacher:
    """Attach the cached outputs of a teacher to all batches.

    Args:
        folder: cache folder written by `ds-seq teacher-cache`.
        train_set: training pairs.
        valid_set: validation pairs; None without validation.

    Raises:
        UserError: the cache is missing or damaged, belongs to other shards, lacks pairs, or mixes
            different teachers; or the task has no sentence pairs.
    """
    if not isinstance(train_set, ParallelDataset):
        raise UserError("criterion.cache: holds outputs for sentence pairs, but the task has none")
    cache = TeacherCache(folder, "train", train_set.source)
    train_set.attach(cache)
    if isinstance(valid_set, ParallelDataset):
        valid = TeacherCache(folder, "valid", valid_set.source)
        settings = [(part.manifest.top_k, part.manifest.teachers) for part in (cache, valid)]
        if settings[0] != settings[1]:
            raise UserError(
                f"{folder}: train and valid were made with different teachers or --top-k; make "
                "them with one `ds-seq teacher-cache` command"
            )
        valid_set.attach(valid)
    return CachedTeacher(cache)


def load_teacher(
    names: Sequence[str],
    loading: Loading,
    vocab_hash: str,
    device: torch.device,
    student: Student | None = None,
    capture: Capture = "none",
) -> LiveTeacher:
    """Load teachers by name onto this rank; a collective.

    Args:
        names: run folders, exported folders or exported files.
        loading: how to load them.
        vocab_hash: `Tokenizers.fingerprint` that all teachers must have.
        device: device of this rank.
        student: the student that learns from them; None if there is none, as for a cache.
        capture: layer outputs to return besides the logits; for a single teacher only.

    Raises:
        UserError: a teacher is missing or damaged, does not fit the student or the vocabulary, or
            cannot be spread over the ranks.
    """
    checkpoint, spread = loading.checkpoint, loading.expert_parallel
    with distributed.shared_errors():
        stored = [open_run(name, checkpoint) for name in names]
        for name, run in zip(names, stored, strict=True):
            _check(name, run, vocab_hash, spread)
            if student is not None:
                _check_student(name, run, student)
    if spread > 1:  # a collective, so not where a single rank may fail
        from ds_seq.moe.engine import expert_parallel_group

        expert_parallel_group(spread)
    with distributed.shared_errors():
        where = torch.device("cpu") if loading.zero3 else device
        runs = [
            load_run(name, checkpoint, where, _dtype(loading.precision, run, device), spread)
            for name, run in zip(names, stored, strict=True)
        ]
    description = _describe(runs, loading)
    if loading.zero3:
        from ds_seq.distill.sharded import shard_for_reading

        runs = [replace(run, model=shard_for_reading(run.model, device)) for run in runs]
    return LiveTeacher(runs, description, capture)


def _dtype(precision: Precision | None, run: StoredRun, device: torch.device) -> torch.dtype:
    return DTYPES[default_dtype(run.card, device) if precision is None else precision]


def _describe(runs: Sequence[LoadedRun], loading: Loading) -> str:
    spread = ""
    if loading.zero3:
        spread = f" over {distributed.world_size()} rank(s)"
    elif loading.expert_parallel > 1:
        spread = f", experts over {loading.expert_parallel} ranks"
    names = []
    for run in runs:
        parameters = list(run.model.parameters())
        size, kind = sum(p.numel() for p in parameters), str(parameters[0].dtype)
        names.append(f"{run.source}, {size:,} parameters of {kind.split('.')[-1]}{spread}")
    return "teacher " + "; ".join(names) + (" (averaged)" if len(names) > 1 else "")


def _check(name: str, run: StoredRun, vocab_hash: str, expert_parallel: int) -> None:
    """Check that the teacher has the data's vocabulary and that its experts can be spread."""
    if (fingerprint := run.tokenizers.fingerprint) != vocab_hash:
        raise UserError(
            f"teacher {name}: has vocabulary {fingerprint[:12]}, the data {vocab_hash[:12]}; words "
            "can only be distilled with one vocabulary. A student with another one can learn from "
            "translations of the teacher: ds-seq pseudo-label TEACHER --student EXPERIMENT"
        )
    if run.card.experts:
        raise UserError(
            f"teacher {name}: is a mixture (criterion hard_em), whose words depend on its expert; "
            "a student can learn from translations: ds-seq pseudo-label TEACHER"
        )
    world_size, model = distributed.world_size(), run.model_config
    if world_size % expert_parallel:
        raise UserError(
            f"teacher {name}: its experts cannot be spread over {expert_parallel} ranks, which do "
            f"not divide the {world_size} process(es); start more or spread them over fewer"
        )
    for stack in model.stacks:
        for index in range(model.layers_of(stack)):
            if (count := model.experts_in(stack, index)) % expert_parallel:
                raise UserError(
                    f"teacher {name}: {count} experts (layer {index} of the {stack}) cannot be "
                    f"spread over {expert_parallel} ranks; take a divisor of {count}"
                )


def _check_student(name: str, run: StoredRun, student: Student) -> None:
    """Check that the teacher translates the same and has the layers to imitate."""
    if (longest := run.card.max_positions) < student.max_length:
        raise UserError(
            f"teacher {name}: reads {longest} tokens, but examples may have {student.max_length}; "
            f"lower {' and '.join(student.limits)} to {longest}"
        )
    if not run.card.can_read(student.languages):
        raise UserError(
            f"teacher {name}: translates {run.card.source_lang} -> {run.card.target_lang}, but the "
            f"student is to learn {' -> '.join(student.languages)}"
        )
    teacher = run.model_config
    widths = (teacher.state_width, student.model.state_width)
    if student.hidden is not None and widths[0] is None:
        raise UserError(
            f"teacher {name}: is a model of name {teacher.name}, which returns no hidden states; "
            "leave `hidden` out"
        )
    if student.hidden is not None and widths[0] != widths[1] and not student.projects:
        raise UserError(
            f"teacher {name}: has d_model {widths[0]}, the student {widths[1]}; hidden states can "
            "only be compared at one width: set hidden.projection to learned, or leave `hidden` out"
        )
    _check_layers(name, teacher, student)


def _check_layers(name: str, teacher: ModelConfig, student: Student) -> None:
    """Check that the teacher has the layers and the attention maps to imitate."""
    for kind in student.attention_kinds:
        if kind not in teacher.attention_maps:
            raise UserError(
                f"teacher {name}: its layers have no attention maps of the kind {kind} to imitate; "
                f"take {kind} out of criterion.attention.kinds"
            )
    for label, matched in (("hidden", student.hidden), ("attention", student.attention)):
        if matched is None:
            continue
        for stack in student.model.stacks:
            deep, shallow = teacher.calls_of(stack), student.model.calls_of(stack)
            layers = matched.of(stack)
            if layers is None:
                try:
                    LAYER_MAPS[matched.match](deep, shallow)
                except ValueError as error:
                    raise UserError(f"teacher {name}: {label}, {stack}: {error}") from None
            elif layers and max(layers) >= deep:
                raise UserError(
                    f"teacher {name}: {label}.{stack} names layer {max(layers)}, but its "
                    f"{deep} layers are 0 to {deep - 1}"
                )


def _log_softmax(logits: Tensor) -> Tensor:
    """Return float32 log-probabilities (N, V), computed in place if `logits` are float32."""
    total = logits.float()
    for rows in row_blocks(total):
        rows.copy_(rows.log_softmax(1))
    return total


def _add_probabilities(total: Tensor, logits: Tensor) -> None:
    """Add the probabilities of logits (N, V) to those whose logarithms are in `total` (N, V)."""
    for rows, more in zip(row_blocks(total), row_blocks(logits), strict=True):
        torch.logaddexp(rows, more.log_softmax(1, dtype=torch.float32), out=rows)


def row_blocks(matrix: Tensor) -> tuple[Tensor, ...]:
    """Split a matrix (N, V) into views (n, V) of a few rows each."""
    numbers = _CPU_NUMBERS if matrix.device.type == "cpu" else _GPU_NUMBERS
    return matrix.split(max(1, numbers // matrix.shape[1]))
