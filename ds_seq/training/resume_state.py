"""What `checkpoint.json` must hold for a training to resume from it, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import FiniteFloat
from typing_extensions import NotRequired, TypedDict

from ds_seq.data.mix_state import MixState
from ds_seq.records import Count, Positive, record
from ds_seq.training.stages import StageState
from ds_seq.weights.meta import read_meta


@record
class Batches(TypedDict):
    """See `ds_seq.data.stream.StreamState`."""

    epoch: Positive
    offset: Count
    num_batches: Positive
    mix: NotRequired[MixState]


@record
class Watch(TypedDict):
    """State of `ds_seq.reports.moe_watch.MoeWatch`."""

    starved: list[list[Count]]
    told: list[bool]


@record
class Diverging(TypedDict):
    """State of `ds_seq.training.divergence.Divergence`."""

    skips: list[Count]
    norms: list[FiniteFloat]
    losses: list[FiniteFloat]


@record
class Room(TypedDict):
    """State of `ds_seq.training.room.RoomFinder`."""

    most: Positive | None
    failures: Count
    dropped: list[Count]


@record
class Progress(TypedDict):
    """State of the trainer besides tensors; older checkpoints lack some of it."""

    update: Count
    skipped: Count
    best_score: float | None
    best_by: NotRequired[str]
    validations_without_progress: Count
    validated_at: int
    seconds: FiniteFloat
    batches: Batches
    moe_watch: NotRequired[Watch]
    stage: NotRequired[StageState]
    max_tokens: NotRequired[Positive | None]
    divergence: NotRequired[Diverging]
    returns: NotRequired[Count]
    room: NotRequired[Room]


@record
class Optimizer(TypedDict):
    """State of the optimizer besides its tensors."""

    name: str
    steps: FiniteFloat
    state: list[str]
    schedule_updates: Count
    without_state: NotRequired[list[str]]
    """Names of tensors that do not exist; in older checkpoints, these are unknown."""


@record
class EngineState(TypedDict):
    """The part of `checkpoint.json` from which `checkpoint.restore` fills an engine."""

    optimizer: Optimizer
    loss_scaler: dict[str, float | None]
    progress: dict[str, Any]


@record
class ResumeState(TypedDict):
    """The part of `checkpoint.json` that a training resumes from."""

    optimizer: Optimizer
    loss_scaler: dict[str, float | None]
    progress: Progress


def check_resumable(folder: Path) -> None:
    """Check the states of optimizer, loss scale and trainer in a checkpoint.

    Raises:
        UserError: it is damaged.
    """
    read_meta(folder, ResumeState)
