"""When a training saves: in the background or not, and what an error of writing means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ds_seq import distributed
from ds_seq.errors import UserError
from ds_seq.training.checkpoint import CheckpointStore
from ds_seq.training.engine import Engine


class Saves:
    """The saves of one training.

    Args:
        store: the checkpoints of the run.
        in_background: whether training goes on while a checkpoint is written. The next save, and
            the end of the run, wait for it.
        goes_on: whether training goes on after a checkpoint that cannot be written.

    Attributes:
        failed: set as soon as this rank knows that the checkpoint in the background cannot be
            written. If it is set on any rank, all of them call `finish`.
        num_failed: checkpoints that could not be written; the same on all ranks.
        last_error: why the last checkpoint could not be written; None if it could.
    """

    def __init__(self, store: CheckpointStore, in_background: bool, goes_on: bool) -> None:
        self._store, self._in_background, self._goes_on = store, in_background, goes_on
        self.failed, self.num_failed = store.failed, 0
        self.last_error: str | None = None

    def connect(self, engine: Engine) -> None:
        """Connect the ranks for all saves to come. A collective; see `CheckpointStore.connect`."""
        self._store.connect(engine)

    def save(
        self,
        engine: Engine,
        update: int,
        progress: dict[str, Any],
        score: float | None,
        criterion: Mapping[str, Tensor],
    ) -> list[str]:
        """Write the state after `update`, or begin to. A collective.

        Args:
            engine: see `CheckpointStore.start`.
            update: see `CheckpointStore.start`.
            progress: see `CheckpointStore.start`.
            score: see `CheckpointStore.start`.
            criterion: see `CheckpointStore.start`.

        Returns:
            Warnings for the log.

        Raises:
            UserError: this checkpoint, or the one before, cannot be written, and training does not
                go on after that.
        """
        warnings = self.finish()
        error = self._store.start(engine, update, progress, score, criterion, self._in_background)
        return warnings + self._judge(error)

    def finish(self) -> list[str]:
        """Wait until the last checkpoint is written. A collective.

        Returns:
            Warnings for the log.

        Raises:
            UserError: it cannot be written, and training does not go on after that.
        """
        is_pending = self._store.is_pending
        error = self._store.finish()
        return self._judge(error) if is_pending else []

    def require_last(self) -> None:
        """Require that the last checkpoint of the run is there, as nothing comes after it.

        Raises:
            UserError: it could not be written.
        """
        if self.last_error is not None:
            self._stop(f"{self.last_error} (the checkpoints before it are intact)")

    def close(self) -> None:
        """Wait for the checkpoint in the background at the end; not a collective."""
        self._store.close()

    def _judge(self, error: str | None) -> list[str]:
        self.last_error = error
        if error is None:
            return []
        self.num_failed += 1
        if not self._goes_on:
            self._stop(
                f"{error} (the checkpoints before it are intact; with "
                "train.on_save_error=continue, training would go on)"
            )
        return [
            f"{error}; training goes on without this checkpoint ({self.num_failed} not written "
            "since the start)"
        ]

    def _stop(self, message: str) -> None:
        with distributed.shared_errors():  # all ranks know it; one reports it
            raise UserError(message)
