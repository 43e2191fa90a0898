"""End a stage of the mix when a figure of the validation no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from ds_seq.data.stream import BatchStream
from ds_seq.records import Count, record
from ds_seq.training.validation import BestBy


@record
class StageState(TypedDict):
    """State of a `StageWatch`."""

    stage: str
    best: float | None
    without_progress: Count


class StageWatch:
    """Ends stages of the mix of corpora that end by a metric.

    Args:
        batches: the training batches.
        figures: how each metric compares, by its name in the experiment.
    """

    def __init__(self, batches: BatchStream, figures: Mapping[str, BestBy]) -> None:
        self._batches, self._figures = batches, figures
        self._best: float | None = None
        self._begin()

    @property
    def name(self) -> str:
        """Name of the present stage; empty if there are no stages."""
        stage = self._batches.stage
        return "" if stage is None else stage.name

    @property
    def are_several(self) -> bool:
        """Whether there is more than one stage."""
        return self._batches.num_stages > 1

    def _begin(self) -> None:
        self._stage, self._best, self._without_progress = self.name, None, 0

    def observe(self, figures: Mapping[str, Any]) -> list[str]:
        """Compare the figures of a validation; perhaps end the stage. Return what to report."""
        if self._stage != self.name:  # it has ended after a number of updates or epochs
            self._begin()
        stage = self._batches.stage
        if stage is None or stage.until.metric is None:
            return []
        by = self._figures[stage.until.metric]
        score = float(figures[by.figure])
        if self._best is None or by.improves(score, self._best):
            self._best, self._without_progress = score, 0
            return []
        self._without_progress += 1
        if self._without_progress < (stage.until.validations or 1):
            return []
        best = self._best
        self._batches.next_stage()
        self._begin()
        return [
            f"stage {stage.name} ends: {by.figure} was better before ({best:.2f}); stage "
            f"{self.name} begins"
        ]

    def state_dict(self) -> StageState:
        """Return the state to resume from."""
        return {
            "stage": self._stage,
            "best": self._best,
            "without_progress": self._without_progress,
        }

    def load_state_dict(self, state: StageState) -> None:
        """Inverse of `state_dict`, once the batches are at their position."""
        self._begin()
        if state["stage"] == self._stage:
            self._best, self._without_progress = state["best"], state["without_progress"]
