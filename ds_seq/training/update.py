"""One update: forward and backward of each of its batches, and the step at their end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq import activity, distributed
from ds_seq.criterions.base import Criterion
from ds_seq.data.batch import Batch
from ds_seq.moe.balance import BiasBalancer
from ds_seq.moe.output import RoutingStats
from ds_seq.training.engine import Engine, StepResult
from ds_seq.training.timing import Timing


class Update(NamedTuple):
    """The batches of one update, and its figures over all ranks."""

    batches: list[Batch]
    """Those of this rank, on the host."""
    tokens: float
    """Target tokens over all ranks."""
    stop: bool
    """Whether the run should end after it."""


class BatchFigures(NamedTuple):
    """What is known of a batch after its forward; tensors are on the device."""

    parts: dict[str, Tensor]
    stats: list[RoutingStats]
    batch: Batch


class Attempt(NamedTuple):
    """What came of running an update."""

    result: StepResult
    lr: float
    """Learning rate of the step."""
    figures: list[BatchFigures]

    def losses(self) -> list[float]:
        """Return the loss of each batch of this rank, summed over its target tokens."""
        return [float(each.parts["loss"]) for each in self.figures]


class UpdateRunner:
    """Runs updates.

    Args:
        engine: the model under DeepSpeed.
        criterion: the loss.
        seed: seed of dropout and of other draws.
        timing: measures forward, backward and step.
    """

    def __init__(self, engine: Engine, criterion: Criterion, seed: int, timing: Timing) -> None:
        self.engine, self._criterion, self._seed = engine, criterion, seed
        self._timing = timing
        self._balancer = BiasBalancer(engine.module)

    def __call__(self, update: Update, number: int, name_gradients: bool = False) -> Attempt:
        """Run an update; DeepSpeed steps after the last batch. A collective.

        An update that was not applied can be run again: nothing of it is left.

        Args:
            update: the batches.
            number: number of updates before it, on which all draws depend.
            name_gradients: whether to look for gradients that are not finite before the step.
        """
        engine = self.engine
        engine.module.train()
        lr = engine.schedule.lr
        _seed_update(self._seed, number, engine.device)
        # undo DeepSpeed's averaging over ranks and accumulation steps: the mean is per token
        scale = distributed.world_size() * engine.accumulate / max(update.tokens, 1.0)
        result, figures = None, []
        for host_batch in update.batches:
            batch = host_batch.to(engine.device, non_blocking=True)
            with self._timing.span("forward"):
                output = engine(batch)
                loss = self._criterion(output, batch)
            with self._timing.span("backward"):
                engine.backward(loss.total * scale)
            with self._timing.span("step"):
                result = engine.step(name_gradients)
            activity.mark()
            parts = {**loss.parts, "loss": loss.total.detach()}
            figures.append(BatchFigures(parts, output.moe_stats, batch))
            self._balancer.add(output.moe_stats)
        assert result is not None, "the last micro-batch of an update steps"
        self._criterion.end_update(result.applied)
        if result.applied:
            self._balancer.update()
        else:
            self._balancer.discard()
        return Attempt(result, lr, figures)


def _seed_update(seed: int, update: int, device: torch.device) -> None:
    """Make dropout depend on (seed, update, rank), so that resuming needs no generator state."""
    mixed = ((seed * 1_000_003 + update) * 8191 + distributed.rank()) % 2**63
    if device.type == "cpu":
        # torch.manual_seed also prepares the seeds of devices that are not there, in 9 ms
        torch.default_generator.manual_seed(mixed)
    else:
        torch.manual_seed(mixed)
