"""Returns to a checkpoint: what `train.on_divergence: back` does.

The run takes up the state of its newest checkpoint and continues behind the batches that led to the
divergence. Checkpoints do not change: until the next one is written, `returns.json` says where a
run that resumes from the same one has to continue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ds_seq import distributed, files
from ds_seq.config.train import TrainConfig
from ds_seq.criterions.base import Criterion
from ds_seq.data.stream import StreamState
from ds_seq.records import Count, Positive, read_json, record
from ds_seq.training.checkpoint_folder import candidates, first_sound
from ds_seq.training.engine import Engine
from ds_seq.training.resume_state import Batches
from ds_seq.training.rewind import rewind
from ds_seq.training.run_log import RunLog

FILE = "returns.json"


@record
class _Return(TypedDict):
    """A return: its number, from 1, the updates before and after it, and where to continue."""

    number: Positive
    diverged_at: Count
    checkpoint: Count
    why: str
    batches: Batches


@record
class _Returns(TypedDict):
    """Content of the file."""

    returns: list[_Return]


class Returns:
    """The returns of a run.

    Args:
        folder: the run folder.
        config: the `train` section of the experiment.
        engine: the model under DeepSpeed.
        criterion: the loss.
        log: the log of the run.

    Attributes:
        done: number of returns so far.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, engine: Engine, criterion: Criterion, log: RunLog
    ) -> None:
        self._folder, self._config = folder, config
        self._engine, self._criterion, self._log = engine, criterion, log
        self.done = 0

    @property
    def are_wanted(self) -> bool:
        """Whether a run that diverges should return at all."""
        return self._config.on_divergence == "back"

    @property
    def is_allowed(self) -> bool:
        """Whether the run may return once more."""
        return self.are_wanted and self.done < self._config.max_returns

    def go_back(self, why: str, update: int, batches: StreamState) -> dict[str, Any] | None:
        """Take up the state of the newest checkpoint that is not damaged. A collective.

        Args:
            why: what has happened.
            update: number of updates before the return.
            batches: the position at which to continue.

        Returns:
            The state of the trainer; None if there is no checkpoint.
        """
        with distributed.shared_errors():
            found = candidates(self._folder, None) if distributed.rank() == 0 else []
        folder, problems = first_sound(distributed.broadcast_object(found))
        if folder is None:
            return None
        progress = rewind(self._engine, self._criterion, folder)
        self.done += 1
        self._lower_lr()
        entry: _Return = {
            "number": self.done,
            "diverged_at": update,
            "checkpoint": progress["update"],
            "why": why,
            "batches": batches,
        }
        with distributed.shared_errors():
            if distributed.rank() == 0:
                kept = [each for each in self._read() if each["number"] < self.done]
                files.write_json(self._folder / FILE, {"returns": [*kept, entry]})
        for problem in problems:
            self._log.say(f"ds-seq: warning: {problem}")
        self._log.go_back(progress["update"])
        lost = {"diverged_at": update, "number": self.done, "why": why, "continues": dict(batches)}
        self._log.record("return", progress["update"], lost)
        self._log.say(
            f"update {update} | {why}; back to the checkpoint after update {progress['update']}, "
            f"without the batches since then (return {self.done} of at most "
            f"{self._config.max_returns}){self._lr_note()}"
        )
        return {**progress, "batches": batches}

    def resume(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of the trainer in a checkpoint, after all returns to that checkpoint."""
        self.done = state.get("returns", 0)
        with distributed.shared_errors():
            known = self._read() if distributed.rank() == 0 else []
        for each in distributed.broadcast_object(known):
            if each["number"] == self.done + 1 and each["checkpoint"] == state["update"]:
                self.done += 1
                state = {**state, "batches": each["batches"]}
                self._log.say(
                    f"continuing without the batches of updates {state['update'] + 1} to "
                    f"{each['diverged_at']}, which had diverged ({each['why']})"
                )
        self._lower_lr()
        return state

    def _read(self) -> list[_Return]:
        try:
            return read_json(self._folder / FILE, _Returns, "delete it")["returns"]
        except FileNotFoundError:
            return []

    def _lower_lr(self) -> None:
        if self.done:
            self._engine.schedule.set_factor(self._config.return_lr_factor**self.done)

    def _lr_note(self) -> str:
        factor = self._config.return_lr_factor
        return "" if factor == 1.0 else f"; the learning rate is multiplied by {factor:g}"
