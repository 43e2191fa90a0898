"""ds_seq's side of a benchmark: `ds-seq train` itself, paused between blocks of updates.

Usage: ds_seq_side.py EXPERIMENT.yaml [--trust NAME]. The whole command runs as for a user; only the
stream of batches pauses when the requested updates are done. With several ranks, rank 0 receives
the commands and reports for all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from worker import Block, Channel, Command, Stopwatch, Validation

CHANNEL = Channel()  # before importing DeepSpeed, which prints

from ds_seq import distributed  # noqa: E402

distributed.import_deepspeed()  # as ds_seq.train does, imported below

import deepspeed  # noqa: E402
import torch  # noqa: E402
from communication import CommunicationClock  # noqa: E402

from ds_seq.commands import train  # noqa: E402
from ds_seq.criterions.base import Criterion, Loss  # noqa: E402
from ds_seq.data.batch import Batch  # noqa: E402
from ds_seq.data.stream import BatchStream, StreamState  # noqa: E402
from ds_seq.models.output import ModelOutput  # noqa: E402
from ds_seq.training import run  # noqa: E402
from ds_seq.training.trainer import Trainer  # noqa: E402
from ds_seq.training.validation import Validator  # noqa: E402


class HeldBatches:
    """Yield the batches of as many updates as the parent requests, and time them.

    An update ends when the trainer requests the next batch.
    """

    def __init__(
        self,
        batches: BatchStream,
        criterion: NotedCriterion,
        accumulate: int,
        validator: Validator,
        save: Callable[[], None],
        clock: CommunicationClock | None,
    ) -> None:
        self._batches, self._criterion, self._accumulate = batches, criterion, accumulate
        self._validator, self._save, self._clock = validator, save, clock
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
        """Report the finished block, and execute commands until more updates are requested."""
        if self._asked:
            block = self._watch.block(self._asked, self._tokens, self._criterion.last_loss())
            self._answer(_over_ranks(block, self._clock))
        while (command := _next_command()) is not None and command.verb != "run":
            if command.verb == "validate":
                self._answer(self._validate())
            else:
                self._save()
                self._answer(None)
        if command is None:
            raise SystemExit(0)
        updates = command.number
        self._asked, self._left, self._tokens = updates, updates * self._accumulate, 0
        if self._clock is not None:
            self._clock.read()
        self._watch = Stopwatch()

    def _validate(self) -> Validation:
        watch = Stopwatch()
        figures = self._validator()
        block = _over_ranks(watch.block(0, 0, math.nan), None)
        bleu = float(figures["bleu"]) if "bleu" in figures else None
        return Validation(
            block.seconds, int(figures["tokens"]), block.cpu_seconds, float(figures["nll"]), bleu
        )

    def _answer(self, answer: Block | Validation | None) -> None:
        if distributed.rank() == 0:
            CHANNEL.done(answer)

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


def _next_command() -> Command | None:
    """The parent's next command, on all ranks."""
    command = CHANNEL.command() if distributed.rank() == 0 else None
    answer: Command | None = distributed.broadcast_object(command)
    return answer


def _over_ranks(block: Block, clock: CommunicationClock | None) -> Block:
    """Sum tokens and processor time over ranks; average their time in collectives."""
    exchange, reduce = (0.0, 0.0) if clock is None else clock.read()
    mine = [float(block.target_tokens), block.cpu_seconds, exchange, reduce]
    tokens, cpu, exchange, reduce = distributed.sum_over_ranks(
        torch.tensor(mine, dtype=torch.float64)
    ).tolist()
    ranks = distributed.world_size()
    return replace(
        block,
        target_tokens=int(tokens),
        cpu_seconds=cpu,
        exchange_seconds=exchange / ranks,
        reduce_seconds=reduce / ranks,
    )


class NotedCriterion(Criterion):
    """Wrap a criterion and record its last output."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._last: tuple[Loss, int] | None = None

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        """See `Criterion`."""
        loss = self._criterion(output, batch)
        self._last = loss, batch.num_tokens
        return loss

    def train(self, mode: bool = True) -> None:
        """See `Criterion`."""
        self._criterion.train(mode)

    def end_update(self, applied: bool) -> None:
        """See `Criterion`."""
        self._criterion.end_update(applied)

    def state(self) -> dict[str, torch.Tensor]:
        """See `Criterion`."""
        return self._criterion.state()

    def last_loss(self) -> float:
        """Loss of the last batch in nats per target token, without smoothing and router losses."""
        if self._last is None:
            return math.nan
        loss, tokens = self._last
        return float(loss.parts["nll"]) / max(tokens, 1)


class HeldTrainer(Trainer):
    """The trainer with a paused stream of batches; reports when it is ready."""

    def __init__(
        self,
        engine: Any,
        criterion: Criterion,
        batches: BatchStream,
        validator: Validator,
        *others: Any,
        **named: Any,
    ) -> None:
        noted = NotedCriterion(criterion)
        clock = CommunicationClock() if distributed.world_size() > 1 else None
        held: Any = HeldBatches(
            batches, noted, engine.accumulate, validator, lambda: self._save(None), clock
        )
        super().__init__(engine, noted, held, validator, *others, **named)
        num_parameters = sum(p.numel() for p in engine.module.parameters())
        versions = f"deepspeed {deepspeed.__version__}, torch {torch.__version__}"
        if distributed.rank() == 0:
            CHANNEL.ready(num_parameters, versions)


def main() -> None:
    """Run `ds-seq train` with the arguments and `--overwrite`."""
    run.Trainer = HeldTrainer  # type: ignore[attr-defined,assignment,misc]
    sys.exit(train.main([*sys.argv[1:], "--overwrite"]))


if __name__ == "__main__":
    main()
