"""What `checkpoint.json` must hold for a training to resume from it, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import FiniteFloat
from typing_extensions import NotRequired, TypedDict

from ds_seq.data.mix_state import MixState
from ds_seq.errors import UserError
from ds_seq.records import Count, Positive, record
from ds_seq.training.stages import StageState
from ds_seq.weights.meta import META_FILE, read_meta

NO_STATE: Final = "without_state"
"""Names of optimizer tensors that do not exist; in older checkpoints, these are unknown."""

WEIGHTS_ONLY: Final = "weights_only"
"""Whether the state of the optimizer has been deleted; see `train.keep_best_state`."""


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
    """See `NO_STATE`."""


@record
class Average(TypedDict):
    """State of `ds_seq.training.ema.Ema` besides its tensors."""

    updates: Count


@record
class EngineState(TypedDict):
    """The part of `checkpoint.json` from which `checkpoint.restore` fills an engine."""

    optimizer: Optimizer
    ema: NotRequired[Average]
    loss_scaler: dict[str, float | None]
    progress: dict[str, Any]


@record
class ResumeState(TypedDict):
    """The part of `checkpoint.json` that a training resumes from."""

    optimizer: Optimizer
    ema: NotRequired[Average]
    loss_scaler: dict[str, float | None]
    progress: Progress
    weights_only: NotRequired[bool]
    """See `WEIGHTS_ONLY`."""


def check_resumable(folder: Path) -> None:
    """Check the states of optimizer, loss scale and trainer in a checkpoint.

    Raises:
        UserError: it is damaged, or holds only weights.
    """
    if read_meta(folder, ResumeState).get(WEIGHTS_ONLY):
        siblings = sorted(path.parent for path in folder.parent.glob(f"update_*/{META_FILE}"))
        whole = [path.name for path in siblings if any(path.glob("optimizer.*.safetensors"))]
        others = f"resume from one with it ({', '.join(whole)})" if whole else "start another run"
        raise UserError(
            f"{folder}: holds the weights but no optimizer state (train.keep_best_state: false); "
            f"{others}, or give its run to train.init_from"
        )
