"""The training loop: the order of events; other modules do the work of each event.

validate on a few batches first, so that a mistake there costs seconds instead of hours
until the last update, epoch or hour, or until patience or a signal ends the run:
    take `accumulate` batches; sum their target tokens over all ranks
    for each: forward, criterion, backward of loss / tokens; DeepSpeed steps after the last one
    every log_every updates: reduce and write the figures
    every validate_every updates: loss and metrics of the validation split
    every save_every updates, after each validation and at the end: save; keep the best and the last
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

from ds_seq import activity, distributed
from ds_seq.config.train import TrainConfig
from ds_seq.criterions.base import Criterion
from ds_seq.data.stream import BatchStream
from ds_seq.distributed.signals import StopSignals
from ds_seq.errors import DivergedError
from ds_seq.names import LAYER_NAMES
from ds_seq.reports.moe_watch import MoeWatch, layer_names
from ds_seq.training.divergence import Diverged, Divergence
from ds_seq.training.engine import Engine, StepResult
from ds_seq.training.memory import explain, largest, update_advice
from ds_seq.training.profiler import Profiler
from ds_seq.training.progress import Window
from ds_seq.training.returns import Returns
from ds_seq.training.room import RoomFinder, survives
from ds_seq.training.run_log import RunLog
from ds_seq.training.saves import Saves
from ds_seq.training.stages import StageWatch
from ds_seq.training.update import Attempt, Update, UpdateRunner
from ds_seq.training.validation import BestBy, Validator
from ds_seq.training.validations import Validations


class Trainer:
    """Trains until one of the stopping conditions is met.

    Args:
        engine: the model under DeepSpeed.
        criterion: the loss.
        batches: this rank's training batches; their position is part of a checkpoint.
        validator: evaluates the model on the validation split.
        saves: writes the checkpoints of the run.
        log: the log of the run.
        config: the `train` section of the experiment.
        best: the score by which validated states are compared.
        stages: ends stages of the mix by a metric.
        divergence: watches over the updates.
        returns: returns to the last checkpoint.
        window: sums the figures of updates; by default without those that depend on the model.
    """

    def __init__(  # noqa: PLR0913  (what `run` has built)
        self,
        engine: Engine,
        criterion: Criterion,
        batches: BatchStream,
        validator: Validator,
        saves: Saves,
        log: RunLog,
        config: TrainConfig,
        best: BestBy,
        stages: StageWatch,
        divergence: Divergence,
        returns: Returns,
        window: Window | None = None,
    ) -> None:
        self.engine, self.criterion, self.batches = engine, criterion, batches
        self.saves, self.log, self.config = saves, log, config
        self.stages, self.divergence, self.returns = stages, divergence, returns
        self.update = 0
        self.skipped = 0
        self._tokens: float | None = 0.0  # unknown after a checkpoint that has not counted them
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._lr = 0.0
        self._signals = StopSignals()
        self._saved_at = -1
        layers = layer_names(engine.module)
        self.validations = Validations(validator, best, config, divergence, log, layers)
        self._names = {LAYER_NAMES: layers} if layers else {}
        self._watch = MoeWatch(layers)
        self._window = window or Window()
        self._profiler = Profiler(config.profiled_updates, log)
        can_go_on = survives(config, engine.forward_is_collective, criterion.is_collective)
        runner = UpdateRunner(engine, criterion, config.seed, self._window.timing, can_go_on)
        self._run_update = RoomFinder(config, runner, log, divergence.numbers)

    def fit(self) -> str:
        """Train.

        Returns:
            Why it ended, see `TrainingResult.reason`.
        """
        self._signals.install()
        try:
            with self._window.timing.communication():
                reason = self._fit()
            self.log.end(self.update, reason)
            return reason
        except BaseException as error:
            reason = "diverged" if isinstance(error, DivergedError) else "error"
            self.log.end(self.update, reason, error)
            raise
        finally:
            self.saves.close()
            self._signals.restore()
            self._profiler.stop(self.update)
            self.batches.close()
            self.log.close()

    def _fit(self) -> str:
        few = self.config.sanity_validation_batches
        if self.update == 0 and self.config.validate_every is not None and few:
            self.validations.measure(self.update, few)
        self._window.restart(self.skipped)
        if self.returns.are_wanted and self._saved_at < 0:
            self._save(None)
        while True:
            try:
                reason = self._run()
                self._finish(validate=reason != "signal")
                return reason
            except Diverged as why:
                self._go_back(why)

    def _run(self) -> str:
        """Run updates until a stopping condition is met, and return which one."""
        updates = self._updates()
        while self.update < self.config.max_updates:
            if self.config.profile is not None:
                self._profiler.reach(self.update)
            if self._out_of_patience():
                return "patience"
            update = next(updates, None)
            if update is None:
                return "max_epochs"
            try:
                result = self._train_step(update)
            except (RuntimeError, MemoryError) as error:
                where = f"in update {self.update + 1} ({largest(update.batches)})"
                explain(error, where, update_advice(self.config))
                raise
            self.update += 1
            activity.finished("training", self.update)
            self.skipped += not result.applied
            self.divergence.check(result, self.update)
            self._periodic(result)
            if update.stop:
                return "signal" if self._any_signal() else "max_hours"
        return "max_updates"

    def _updates(self) -> Iterator[Update]:
        """Fetch all batches of an update and agree on its size before the first forward."""
        hours = self.config.max_hours
        while True:
            count = range(self.engine.accumulate)
            with self._window.timing.span("data"):
                batches = [batch for _, batch in zip(count, self.batches, strict=False)]
            if len(batches) < self.engine.accumulate:  # the same on all ranks
                return
            batches = self._run_update.fitted(batches)
            tokens = float(sum(batch.num_tokens for batch in batches))
            seconds = time.monotonic() - self._started  # of this job: a queue limits each one
            out_of_time = hours is not None and seconds > 3600 * hours
            stop, failed = self._signals.received or out_of_time, self.saves.failed.is_set()
            # the loss of the update before this one travels with its size
            excess = self._run_update.excess(batches)
            local = [tokens, float(stop), float(failed), self.divergence.last_loss, excess]
            shared = distributed.sum_over_ranks(torch.tensor(local, dtype=torch.float64))
            tokens, stop, failed, loss, excess = shared.tolist()
            self.divergence.observe_loss(loss, self.update)
            if failed:
                self._wait_for_save()
            yield Update(self._run_update.evened(batches, excess), tokens, bool(stop))

    def _train_step(self, update: Update) -> StepResult:
        """Run one update, and count its figures."""

        def run() -> Attempt:
            return self._run_update(update, self.update, name_gradients=True)

        attempt = self._run_update(update, self.update)
        attempt = self.divergence.judge(update, attempt, self.update + 1, run)
        self._lr = attempt.lr
        self._window.count(update.batches)
        for figures in attempt.figures:
            self._window.add(*figures)
        return attempt.result

    def _periodic(self, result: StepResult) -> None:
        """Log, validate and save if they are due after this update."""
        self._window.updates += 1
        if self.update % self.config.log_every == 0:
            self._log(result)
        else:
            self.log.advance(self.update)
        validate_every, save_every = self.config.validate_every, self.config.save_every
        score = None
        if validate_every is not None and self.update % validate_every == 0:
            score = self._validate()
            for line in self.stages.observe(self.validations.last):
                self.log.say(f"update {self.update} | {line}")
        if score is not None or (save_every is not None and self.update % save_every == 0):
            self._save(score)

    def _log(self, result: StepResult) -> None:
        figures: dict[str, Any] = dict(self._window.reduce())
        loss = float(figures["loss"])
        if self.skipped == self._window.skipped_before:  # a skipped update may have had any loss
            self.divergence.require_finite("training loss", loss, self.update)
        figures.update(
            epoch=self.batches.epoch,
            lr=self._lr,
            grad_norm=result.grad_norm,
            loss_scale=result.loss_scale,
            skipped_updates=self.skipped,
            out_of_memory=self._run_update.failures,
            failed_saves=self.saves.num_failed,
        )
        if self._tokens is not None:
            self._tokens += float(figures["tokens"])
            figures["total_tokens"] = self._tokens
        self.log.record("train", self.update, {**figures, **self._names})
        brief = {
            "epoch": f"{self.batches.epoch}",
            "stage": self.stages.name if self.stages.are_several else "",
            "loss": f"{loss:.3f}",
            "ppl": f"{figures['ppl']:.{'2f' if loss < 10 else '1e'}}" if "ppl" in figures else "",
            "lr": f"{figures['lr']:.2e}",
            "norm": f"{result.grad_norm:.2f}",
            "skipped": f"{self.skipped}" if self.skipped else "",
            "tokens/s": f"{figures['tokens_per_second']:,.0f}",
        }
        self.log.advance(self.update, {name: value for name, value in brief.items() if value})
        for line in self._watch.observe(figures, self._window.updates):
            self.log.say(f"update {self.update} | {line}")
        self._window.restart(self.skipped)

    def _validate(self) -> float:
        with self._window.paused():  # tokens/s counts training only
            return self.validations.validate(self.update)

    def _go_back(self, why: Diverged) -> None:
        """Return to the last checkpoint, or end the run if it may not."""
        before = self.batches.state_dict()
        self._wait_for_save()
        state = None
        if self.returns.is_allowed:
            state = self.returns.go_back(str(why), self.update, before)
        if state is None:
            self._end(why)
        # the time of this job goes on, whatever the checkpoint says
        self._take_up({**state, "seconds": self._seconds_before})
        self.divergence.restart()
        self._window.restart(self.skipped)

    def _end(self, why: Diverged) -> NoReturn:
        """End a run that has diverged; save its state if its weights are sound."""
        if why.weights_are_sound and self._saved_at != self.update:
            self._save(None)
        self._wait_for_save()
        state = "the last checkpoint is intact" if self._saved_at >= 0 else "nothing is saved"
        if self._saved_at == self.update and self.saves.last_error is None:
            state = f"the state after update {self.update} is saved"
        with distributed.shared_errors():  # all ranks see it; one reports it
            raise DivergedError(f"{why}; {state}. To go on, {why.advice}")

    def _save(self, score: float | None) -> None:
        with self._window.paused(), activity.phase("saving a checkpoint", may_take_long=True):
            if self.validations.at != self.update:
                self.divergence.require_finite_weights(self.update)
            state = self.criterion.state()
            self._warn(self.saves.save(self.engine, self.update, self.state_dict(), score, state))
        self._saved_at = self.update

    def _finish(self, validate: bool) -> None:
        """Save a final checkpoint, validated unless a signal ended the run."""
        score = None
        if (
            validate
            and self.config.validate_every is not None
            and self.validations.at != self.update
        ):
            score = self._validate()
        self._wait_for_save()
        if self._saved_at != self.update or score is not None or self.saves.last_error is not None:
            self._save(score)
            self._wait_for_save()
        self.saves.require_last()

    def _wait_for_save(self) -> None:
        with activity.phase("waiting for a checkpoint to be written", may_take_long=True):
            self._warn(self.saves.finish())

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self.log.say(f"ds-seq: warning: {warning}")

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.validations.without_progress >= patience

    def _any_signal(self) -> bool:
        return distributed.any_rank(self._signals.received)

    def _seconds(self) -> float:
        """Return the training time, including that of the runs that this one resumes."""
        return self._seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, besides weights, optimizer, schedule and loss scale."""
        return {
            "update": self.update,
            "skipped": self.skipped,
            "tokens": self._tokens,
            **self.validations.state_dict(),
            "seconds": self._seconds(),
            "batches": dict(self.batches.state_dict()),
            "moe_watch": self._watch.state_dict(),
            "stage": self.stages.state_dict(),
            "max_tokens": self.config.max_tokens,
            "divergence": self.divergence.state_dict(),
            "returns": self.returns.done,
            "room": self._run_update.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, after all returns to this state."""
        self._take_up(self.returns.resume(state))

    def _take_up(self, state: dict[str, Any]) -> None:
        self.update, self.skipped = state["update"], state["skipped"]
        self._tokens = state.get("tokens")
        self.validations.load_state_dict(state)
        self._seconds_before = state["seconds"]
        self._saved_at = self.update
        self.batches.load_state_dict(state["batches"])
        if "divergence" in state:
            self.divergence.load_state_dict(state["divergence"])
        if "room" in state:
            self._run_update.load_state_dict(state["room"])
        if "moe_watch" in state:  # older checkpoints have none
            self._watch.load_state_dict(state["moe_watch"])
        if "stage" in state:
            self.stages.load_state_dict(state["stage"])
