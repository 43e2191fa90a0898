"""Updates whose batches must fit into memory: split those for which memory has run out.

Where a forward is no collective, a rank without memory can keep the update from being applied on
all ranks (see `UpdateRunner`), and all of them run it again with that batch in halves. The loss is
a sum over tokens, so the update stays the same, apart from random draws and from what experts with
a capacity drop. Later batches of that size are split before they are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ds_seq import distributed
from ds_seq.config.train import TrainConfig
from ds_seq.data.batch import Batch
from ds_seq.data.splitting import emptied, halves, padded_tokens
from ds_seq.errors import UserError
from ds_seq.training.batch_ids import PairNumbers, shown
from ds_seq.training.finite import SkippedUpdates
from ds_seq.training.memory import update_advice
from ds_seq.training.run_log import RunLog
from ds_seq.training.update import Attempt, Failure, Update, UpdateRunner

_RECENT = 1000
_LEAST_SHARE = 8
"""A batch of less than 1/8 of `train.max_tokens` that does not fit is not to blame."""


class _Report(NamedTuple):
    """A batch that did not fit."""

    rank: int
    sentences: int
    size: int
    tokens: int
    pairs: dict[str, list[int]]

    @property
    def is_single(self) -> bool:
        return self.sentences < 2


class RoomFinder:
    """Runs updates, split where they do not fit.

    Args:
        config: the `train` section of the experiment.
        run: runs an update.
        log: the log of the run.
        numbers: names the pairs of a batch.

    Attributes:
        failures: number of batches for which memory has run out.
    """

    def __init__(
        self, config: TrainConfig, run: UpdateRunner, log: RunLog, numbers: PairNumbers
    ) -> None:
        self._config, self._run, self._log, self._numbers = config, run, log, numbers
        self._most: int | None = None  # padded tokens of a batch that may fit
        self._dropped = SkippedUpdates(config.max_skips, _RECENT)
        self.failures = 0

    def fitted(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return the batches of this rank, those in parts that would not fit as a whole."""
        if self._most is None or self._config.on_out_of_memory == "skip":
            return list(batches)
        fitted: list[Batch] = []
        for batch in batches:
            if padded_tokens(batch) <= self._most or batch.num_sentences < 2:
                fitted.append(batch)
            else:
                fitted += self.fitted(halves(batch))
        return fitted

    def excess(self, batches: Sequence[Batch]) -> float:
        """Return how many more batches this rank has than usual; see `evened`."""
        return float(len(batches) - self._run.engine.accumulate)

    def evened(self, batches: list[Batch], excess: float) -> list[Batch]:
        """Add empty batches until all ranks have the same number.

        A collective if `excess` is not 0.

        Args:
            batches: batches of this rank.
            excess: sum of `excess` over all ranks.
        """
        if not excess:
            return batches
        counts = distributed.broadcast_object(distributed.gather_objects(len(batches)))
        return batches + [emptied(batches[0])] * (max(counts) - len(batches))

    def __call__(self, update: Update, number: int, name_gradients: bool = False) -> Attempt:
        """Run an update until it fits; see `UpdateRunner`. A collective.

        Raises:
            UserError: it does not fit, although its batches are small.
        """
        engine = self._run.engine
        scale = engine.loss_scaler_state()
        while True:
            attempt = self._run(update, number, name_gradients)
            failed = attempt.failure is not None
            if attempt.result.applied or not distributed.any_rank(failed):
                self._dropped.note(False)
                return attempt
            engine.load_loss_scaler_state(scale)  # the gradients were NaN on purpose
            update = self._smaller(update, attempt.failure, number)

    def _smaller(self, update: Update, failure: Failure | None, number: int) -> Update:
        """Return the update with the batches that did not fit in halves, or without them."""
        report = None
        if failure is not None:
            batch = failure.batch
            report = _Report(
                distributed.rank(),
                batch.num_sentences,
                padded_tokens(batch),
                batch.num_tokens,
                self._numbers(batch.indices.tolist()),
            )
        of_ranks = distributed.broadcast_object(distributed.gather_objects(report))
        reports = [each for each in of_ranks if each is not None]
        self._require_progress(reports, number)
        self.failures += len(reports)
        several = [each.size for each in reports if not each.is_single]
        known = [] if self._most is None else [self._most]
        self._most = min([*known, *(size - 1 for size in several)], default=None)
        batches = list(update.batches)
        if failure is not None:
            batches[failure.place : failure.place + 1] = self._parts(failure.batch)
        batches = self.fitted(batches)
        self._tell(reports, number)
        lost = sum(each.tokens for each in reports if self._is_dropped(each))
        return Update(self.evened(batches, 1.0), update.tokens - lost, update.stop)

    def _is_dropped(self, report: _Report) -> bool:
        return report.is_single or self._config.on_out_of_memory == "skip"

    def _parts(self, batch: Batch) -> list[Batch]:
        if self._config.on_out_of_memory == "skip" or batch.num_sentences < 2:
            return [emptied(batch)]
        return halves(batch)

    def _require_progress(self, reports: list[_Report], number: int) -> None:
        if any(map(self._is_dropped, reports)):
            self._dropped.note(True)
        tokens = self._config.max_tokens
        most = tokens if isinstance(tokens, int) else 0
        is_small = any(each.size * _LEAST_SHARE < most for each in reports)
        if not is_small and not self._dropped.too_many:
            return
        with distributed.shared_errors():  # all ranks know it; one reports it
            raise UserError(
                f"out of memory in update {number + 1}: {_described(reports)}, after "
                f"{self.failures} batch(es) that did not fit; {update_advice(self._config)}"
            )

    def _tell(self, reports: list[_Report], number: int) -> None:
        batches: list[dict[str, Any]] = [
            {**each._asdict(), "dropped": self._is_dropped(each)} for each in reports
        ]
        self._log.record("out_of_memory", number + 1, {"batches": batches})
        dropped = sum(map(self._is_dropped, reports))
        action = "left out" if dropped else "split in halves"
        later = "" if dropped else ", and later ones of that size are split at once"
        size = min(each.size for each in reports) // 2
        self._log.say(
            f"update {number + 1} | out of memory with {_described(reports)}; the update is run "
            f"again with that {action}{later} (batches that did not fit so far: {self.failures}); "
            f"try train.max_tokens={size} with train.global_batch_tokens for the same updates; "
            f"{shown(batches)}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {"most": self._most, "failures": self.failures, "dropped": self._dropped.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._most, self.failures = state["most"], state["failures"]
        self._dropped.load_state(state["dropped"])


def _described(reports: list[_Report]) -> str:
    return " and ".join(
        f"{each.sentences} sentence(s), {each.size:,} tokens, padding included, on rank {each.rank}"
        for each in reports
    )


def survives(config: TrainConfig, forward_is_collective: bool, loss_is_collective: bool) -> bool:
    """Return whether a rank may go on after its memory has run out.

    If ranks share experts, weights or a teacher, the others wait for it inside their forward.
    """
    return config.on_out_of_memory != "stop" and not (forward_is_collective or loss_is_collective)
