"""The validations of a training: their figures in the log, and the best score so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ds_seq import activity
from ds_seq.config.train import TrainConfig
from ds_seq.names import LAYER_NAMES, LM_METRICS
from ds_seq.reports.metrics import load_panel, metric_lines_by_file, metric_names
from ds_seq.training.divergence import Divergence
from ds_seq.training.memory import explain, validation_advice
from ds_seq.training.run_log import RunLog
from ds_seq.training.validation import BestBy, Validator


class Validations:
    """Validates, records the figures, and compares with the best.

    Args:
        validator: evaluates the model on the validation split.
        best: the score by which validated states are compared.
        config: the `train` section of the experiment.
        divergence: refuses figures that are not finite.
        log: the log of the run.
        layers: names of the layers with experts, in the order of the figures.

    Attributes:
        best_score: score of the best validation; None before the first.
        without_progress: number of validations since the best one.
        last: figures of the last validation; empty before the first.
        at: update after which it was; -1 before the first.
    """

    def __init__(
        self,
        validator: Validator,
        best: BestBy,
        config: TrainConfig,
        divergence: Divergence,
        log: RunLog,
        layers: Sequence[str],
    ) -> None:
        self.validator, self.best = validator, best
        self._config, self._divergence, self._log = config, divergence, log
        self._layers = list(layers)
        self.best_score: float | None = None
        self.without_progress = 0
        self.last: dict[str, Any] = {}
        self.at = -1

    def measure(self, update: int, max_batches: int | None = None) -> dict[str, Any]:
        """Return the figures of the model after `update`; see `Validator`. A collective.

        Raises:
            UserError: memory has run out.
        """
        try:
            with activity.phase("validation", may_take_long=update == 0):
                return self.validator(max_batches)
        except (RuntimeError, MemoryError) as error:
            explain(error, "in a validation", validation_advice(self._config))
            raise

    def validate(self, update: int) -> float:
        """Validate after `update`, record the figures, and return the score. A collective.

        Raises:
            Diverged: the weights or the loss are not finite.
            UserError: memory has run out.
        """
        self._divergence.require_finite_weights(update)
        figures = self.measure(update)
        self._divergence.require_finite("validation loss", float(figures["loss"]), update)
        score = float(figures[self.best.figure])
        improved = self.best_score is None or self.best.improves(score, self.best_score)
        self.without_progress = 0 if improved else self.without_progress + 1
        if improved:
            self.best_score = score
        if not self.last:
            self._say_signatures(figures)
        self.last, self.at = figures, update
        self._record(update, figures, improved)
        return score

    def _record(self, update: int, figures: Mapping[str, Any], improved: bool) -> None:
        more: dict[str, Any] = {"best_score": self.best_score, "best_by": self.best.figure}
        if self._layers:
            more[LAYER_NAMES] = self._layers
        self._log.record("valid", update, {**figures, **more})
        panel = load_panel(f"validation after update {update}", figures, self._layers)
        self._log.picture("valid/moe/load", update, panel)
        names = [name for name in ("loss", "ppl") if name in figures] + metric_names(figures)
        shown = [f"valid {name} {figures[name]:.2f}" for name in names]
        self._log.say(f"update {update} | {' | '.join(shown)}{' | best' if improved else ''}")
        for line in metric_lines_by_file(figures):
            self._log.say(f"update {update} | {line}")

    def _say_signatures(self, figures: Mapping[str, Any]) -> None:
        """Print the signatures of the metrics, which make scores comparable."""
        for name in metric_names(figures):
            if signature := figures[f"{name}_signature"]:
                what = "" if name in LM_METRICS else "is of detokenized text, "
                self._log.say(f"valid {name} {what}signature {signature}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {
            "best_score": self.best_score,
            "best_by": self.best.figure,
            "validations_without_progress": self.without_progress,
            "validated_at": self.at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; a best score by another figure is of no use."""
        if state.get("best_by", self.best.figure) == self.best.figure:  # older states have no name
            self.best_score = state["best_score"]
            self.without_progress = state["validations_without_progress"]
        self.at = state["validated_at"]
