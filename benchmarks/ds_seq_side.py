"""ds_seq's side of train_throughput.py: ``ds-seq train`` itself, made to wait between blocks.

Usage: ds_seq_side.py EXPERIMENT.yaml. All of the command runs as it does for a user; only the
stream of batches is held up where a command's updates are done.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from worker import Channel, Stopwatch

CHANNEL = Channel()  # before DeepSpeed is imported, which prints


import deepspeed  # noqa: E402
import torch  # noqa: E402

from ds_seq import train  # noqa: E402
from ds_seq.criterions.base import Criterion, Loss  # noqa: E402
from ds_seq.data.dataset import Batch  # noqa: E402
from ds_seq.data.stream import BatchStream, StreamState  # noqa: E402
from ds_seq.models.output import ModelOutput  # noqa: E402
from ds_seq.training.trainer import Trainer  # noqa: E402


class HeldBatches:
    """Hands out the batches of as many updates as the parent asks for, and times them.

    An update's time ends when the trainer comes for the next batch.
    """

    def __init__(self, batches: BatchStream, criterion: NotedCriterion, accumulate: int) -> None:
        self._batches, self._criterion, self._accumulate = batches, criterion, accumulate
        self._left = self._asked = self._tokens = 0
        self._watch = Stopwatch()

    def __next__(self) -> Batch:
        if self._left == 0:
            self._wait()
        self._left -= 1
        batch = next(self._batches)
        self._tokens += batch.num_tokens
        return batch

    def _wait(self) -> None:
        if self._asked:
            loss = self._criterion.last_loss()
            CHANNEL.done(self._watch.block(self._asked, self._tokens, loss))
        updates = CHANNEL.command()
        if updates is None:
            raise SystemExit(0)
        self._asked, self._left, self._tokens = updates, updates * self._accumulate, 0
        self._watch = Stopwatch()

    def __iter__(self) -> HeldBatches:
        return self

    @property
    def epoch(self) -> int:
        """See `BatchStream.epoch`."""
        return self._batches.epoch

    @property
    def updates_per_epoch(self) -> int:
        """See `BatchStream.updates_per_epoch`."""
        return self._batches.updates_per_epoch

    def state_dict(self) -> StreamState:
        """See `BatchStream.state_dict`."""
        return self._batches.state_dict()

    def close(self) -> None:
        """See `BatchStream.close`."""
        self._batches.close()


class NotedCriterion:
    """Passes a criterion through and remembers what it last said."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._last: tuple[Loss, int] | None = None

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """See `Criterion`."""
        loss = self._criterion(output, batch)
        self._last = loss, batch.num_tokens
        return loss

    def last_loss(self) -> float:
        """Nats a target token of the last batch, without smoothing and gate losses."""
        if self._last is None:
            return math.nan
        loss, tokens = self._last
        return float(loss.parts["nll"]) / tokens


class HeldTrainer(Trainer):
    """The trainer with its batches held up; says that it is ready when it is complete."""

    def __init__(
        self, engine: Any, criterion: Criterion, batches: BatchStream, *others: Any
    ) -> None:
        noted = NotedCriterion(criterion)
        held: Any = HeldBatches(batches, noted, engine.accumulate)
        super().__init__(engine, noted, held, *others)
        num_parameters = sum(p.numel() for p in engine.module.parameters())
        versions = f"deepspeed {deepspeed.__version__}, torch {torch.__version__}"
        CHANNEL.ready(num_parameters, versions)


def main() -> None:
    """Runs ``ds-seq train EXPERIMENT.yaml --overwrite``."""
    train.Trainer = HeldTrainer  # type: ignore[attr-defined,assignment,misc]
    sys.exit(train.main([sys.argv[1], "--overwrite"]))


if __name__ == "__main__":
    main()
