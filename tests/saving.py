"""Save a state as a training does that waits for each save."""

from __future__ import annotations

from typing import Any

from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.engine import Engine
from ds_seq.training.saves import Saves


def save_and_wait(
    store: CheckpointStore,
    engine: Engine,
    update: int,
    progress: dict[str, Any],
    score: float | None = None,
) -> None:
    """Write the state after ``update``; a collective."""
    saves = Saves(store, in_background=False, goes_on=False)
    assert saves.save(engine, update, progress, score, {}) == []
