"""What happens when training diverges: report it, skip it, or end the run.

An update whose gradients are not finite is not applied in any layout. All ranks know it, because
the norm of the gradients is a sum over ranks. With a dynamic fp16 loss scale that is part of the
method: the next update has a smaller scale. Any other such update has failed. It is run a second
time, to find where the first infinity or NaN arises, and whether the same batches give the same
result.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ds_seq import distributed
from ds_seq.config.train import TrainConfig
from ds_seq.training.batch_ids import PairNumbers, gather_pairs, shown
from ds_seq.training.engine import Engine, StepResult
from ds_seq.training.finite import SkippedUpdates, describe, weights_not_finite
from ds_seq.training.probe import probed
from ds_seq.training.run_log import RunLog
from ds_seq.training.spikes import Spikes
from ds_seq.training.update import Attempt, Update

_TOLERATED, _RECENT = 2, 20
_RECENT_SKIPS = 1000
_NORMS = 8
_SAME = 1e-3
"""Relative difference of losses up to which two runs of a batch have the same result."""
_ADVICE = "lower optimizer.lr, lengthen scheduler.warmup_updates, or set train.clip_norm"


class Diverged(Exception):
    """The run cannot go on as it is; raised by all ranks alike.

    Args:
        what: what has happened, for the message.
        advice: what to change.
        weights_are_sound: whether the present weights may be saved.
    """

    def __init__(self, what: str, advice: str = _ADVICE, weights_are_sound: bool = False) -> None:
        super().__init__(what)
        self.advice, self.weights_are_sound = advice, weights_are_sound


class _Finding(NamedTuple):
    """What a rank has seen when it ran a failed update again."""

    module: str
    """Name of the first module whose output was not finite; empty if all were."""
    loss_is_finite: bool
    is_same: bool
    """Whether the losses were those of the first time."""


class Divergence:
    """Watches over the updates of a run.

    Args:
        config: the `train` section of the experiment.
        engine: the model under DeepSpeed.
        log: the log of the run.
        numbers: names the pairs of a batch.
    """

    def __init__(
        self, config: TrainConfig, engine: Engine, log: RunLog, numbers: PairNumbers
    ) -> None:
        self._config, self._engine, self._log, self.numbers = config, engine, log, numbers
        is_patient = config.on_divergence == "skip"
        limits = (config.max_skips, _RECENT_SKIPS) if is_patient else (_TOLERATED, _RECENT)
        self._skips = SkippedUpdates(*limits)
        self._norms: deque[str] = deque(maxlen=_NORMS)
        self._norm_spikes = Spikes(config.norm_spike)
        self._loss_spikes = Spikes(config.loss_spike)
        self._last: Update | None = None
        self._last_loss: float | None = None

    def judge(
        self, update: Update, attempt: Attempt, number: int, again: Callable[[], Attempt]
    ) -> Attempt:
        """Look at an update that has been run, and run it again if it has failed. A collective.

        Args:
            update: the update.
            attempt: what came of it.
            number: its number, from 1.
            again: runs it again.

        Returns:
            What came of it the last time.
        """
        result = attempt.result
        if result.failed:
            attempt = self._look_again(update, attempt, number, again)
            result = attempt.result
        self._norms.append(f"{result.grad_norm:.3g} at scale {result.loss_scale:g}")
        self._skips.note(result.failed)
        self._last, self._last_loss = attempt.update, None
        if result.applied:
            self._last_loss = math.fsum(attempt.losses())
            self._spike("gradient norm", result.grad_norm, self._norm_spikes, number)
        return attempt

    def check(self, result: StepResult, number: int) -> None:
        """Require that the run may go on after an update.

        Raises:
            Diverged: it may not.
        """
        if self._skips.too_many:
            what = f"{self._skips} were skipped because gradients were not finite"
            self._skips.clear()
            raise Diverged(*self._explained(what, result), weights_are_sound=True)
        if result.applied:  # after an infinite norm the weights are useless and must not be saved
            self.require_finite("gradient norm", result.grad_norm, number)

    @property
    def last_loss(self) -> float:
        """This rank's loss of the last update if it was applied, else 0; see `observe_loss`."""
        return self._last_loss or 0.0

    def observe_loss(self, total: float, number: int) -> None:
        """Look at the loss of the last update, which is reduced with the size of the next one.

        Args:
            total: sum of `last_loss` over all ranks.
            number: number of that update.

        Raises:
            Diverged: it is not finite.
        """
        if self._last is None or self._last_loss is None:
            return
        loss = total / max(self._last.tokens, 1.0)
        self.require_finite("training loss", loss, number)
        self._spike("loss", loss, self._loss_spikes, number)

    def require_finite(self, kind: str, value: float, number: int) -> None:
        """Require a figure that all ranks have in common to be finite. A collective.

        Raises:
            Diverged: it is not.
        """
        if not math.isfinite(value):
            names = weights_not_finite(self._engine.module)
            cause = f" ({describe(names, [])})" if names else ""
            raise Diverged(f"the {kind} is {value}{cause} at update {number}")

    def require_finite_weights(self, number: int) -> None:
        """Require all weights to be finite, before they are validated or saved. A collective.

        The loss may hide them: on a CPU, relu turns NaN into 0, and an expert may be idle.

        Raises:
            Diverged: some are not.
        """
        if names := weights_not_finite(self._engine.module):
            raise Diverged(f"{describe(names, [])} at update {number}")

    def _look_again(
        self, update: Update, first: Attempt, number: int, again: Callable[[], Attempt]
    ) -> Attempt:
        """Run a failed update a second time, and report what it shows."""
        with probed(self._engine.module) as probe:
            second = again()
        losses = second.losses()
        finding = _Finding(
            probe.first,
            all(map(math.isfinite, losses)),
            all(map(_is_same, first.losses(), losses)),
        )
        weights = weights_not_finite(self._engine.module)
        findings = distributed.gather_objects(finding)
        batches = gather_pairs(update.batches, self.numbers)
        if findings is not None:
            self._report(second.result, number, findings, weights, batches)
        return second

    def _report(
        self,
        result: StepResult,
        number: int,
        findings: list[_Finding],
        weights: list[str],
        batches: list[dict[str, Any]],
    ) -> None:
        others = [rank for rank, finding in enumerate(findings) if not finding.is_same]
        is_hardware = bool(others) or result.applied
        place = _place(findings)
        where = describe(weights, list(result.gradients))
        figures = {
            "applied": result.applied,
            "cause": "hardware" if is_hardware else "data or model",
            "first": place,
            "weights": weights,
            "gradients": list(result.gradients),
            "loss_scale": result.loss_scale,
            "batches": batches,
        }
        self._log.record("divergence", number, figures)
        if is_hardware:
            ranks = f" on rank {', '.join(map(str, others))}" if others else ""
            verdict = (
                f"the same batches had another result the second time{ranks}: the hardware, or a "
                "kernel that is not deterministic"
            )
        else:
            verdict = "the same batches had the same result the second time: the data or the model"
        what = "gradients were not finite, " + (
            "but were so when the update was run again, and it was applied"
            if result.applied
            else f"so the update was skipped: {where}, first in {place}"
        )
        self._log.say(f"update {number} | {what}; {verdict}; {shown(batches)}")

    def _explained(self, what: str, result: StepResult) -> tuple[str, str]:
        """Return what has happened and what to do about it, for a run of failed updates."""
        names = weights_not_finite(self._engine.module)
        where = describe(names, list(result.gradients))
        norms = f"; the last gradient norms: {', '.join(self._norms)}"
        advice = _ADVICE
        if self._config.precision == "fp16":
            scale = f"{result.loss_scale:g}"
            what = f"fp16: gradients overflow even at loss scale {scale}: {what}"
            advice = f"set train.precision to bf16 where the hardware has it, or {advice}"
            if self._engine.has_fixed_scale:
                advice = f"remove fp16.loss_scale ({scale}) from the DeepSpeed JSON, or {advice}"
        return f"{what} ({where}{norms})", advice

    def _spike(self, kind: str, value: float, spikes: Spikes, number: int) -> None:
        """Record a value that is far above the last ones; the same on all ranks."""
        middle = spikes.median_below(value)
        if middle is None or self._last is None:
            return
        batches = gather_pairs(self._last.batches, self.numbers)
        figures = {"figure": kind, "value": value, "median": middle, "batches": batches}
        self._log.record("spike", number, figures)
        self._log.say(
            f"update {number} | spike: {kind} {value:.3g}, {value / middle:.1f} times the median "
            f"of the updates before it; {shown(batches)}"
        )

    def restart(self) -> None:
        """Forget skipped updates, after a return to a checkpoint."""
        self._skips.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {
            "skips": self._skips.state(),
            "norms": self._norm_spikes.state(),
            "losses": self._loss_spikes.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._skips.load_state(state["skips"])
        self._norm_spikes.load_state(state["norms"])
        self._loss_spikes.load_state(state["losses"])
        self._last = self._last_loss = None


def _is_same(first: float, second: float) -> bool:
    if math.isfinite(first) and math.isfinite(second):
        return math.isclose(first, second, rel_tol=_SAME)
    return math.isfinite(first) == math.isfinite(second)


def _place(findings: list[_Finding]) -> str:
    """Name the place where the first infinity or NaN arose."""
    several = len(findings) > 1
    for rank, finding in enumerate(findings):
        on = f" on rank {rank}" if several else ""
        if finding.module:
            return f"the output of {finding.module}{on}"
        if not finding.loss_is_finite:
            return f"the loss{on}: the outputs of the model are finite"
    return "the backward pass: outputs and losses are finite"
