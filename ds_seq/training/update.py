"""One update: forward and backward of each of its batches, and the step at their end."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ds_seq import activity, distributed
from ds_seq.criterions.base import Criterion, Current
from ds_seq.data.batch import Batch
from ds_seq.data.splitting import can_split, emptied, repeated
from ds_seq.generation.memory import is_out_of_memory
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


class Failure(NamedTuple):
    """A batch of this rank for which memory has run out."""

    place: int
    """Its number in the update, from 0."""
    batch: Batch


class Attempt(NamedTuple):
    """What came of running an update."""

    update: Update
    result: StepResult
    lr: float
    """Learning rate of the step."""
    figures: list[BatchFigures]
    failure: Failure | None = None
    """Why this rank has kept the update from being applied."""

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
        survives: whether to return after memory has run out, if that is possible at all.
    """

    def __init__(
        self,
        engine: Engine,
        criterion: Criterion,
        seed: int,
        timing: Timing,
        survives: bool = False,
    ) -> None:
        self.engine, self._criterion, self._seed = engine, criterion, seed
        self._timing, self._survives = timing, survives
        self._balancer = BiasBalancer(engine.module)
        trained = [weight for weight in engine.module.parameters() if weight.requires_grad]
        self._smallest = min(trained, key=Tensor.numel)

    def __call__(self, update: Update, number: int, name_gradients: bool = False) -> Attempt:
        """Run an update; DeepSpeed steps after the last batch. A collective.

        An update that was not applied can be run again: nothing of it is left.

        If memory runs out for a batch of this rank, the rank goes through the motions with an empty
        batch whose gradients are NaN. Other ranks need not wait or ask: their norm is NaN, too, so
        all of them skip the update.

        Args:
            update: the batches.
            number: number of updates before it, on which all draws depend.
            name_gradients: whether to look for gradients that are not finite before the step.
        """
        engine = self.engine
        engine.module.train()
        lr = engine.schedule.lr
        _seed_update(self._seed, number, engine.device)
        any_rank = distributed.any_rank if engine.forward_is_collective else None
        current = Current(engine.module, number, any_rank)
        # undo DeepSpeed's averaging over ranks and accumulation steps: the mean is per token
        scale = distributed.world_size() * engine.accumulate / max(update.tokens, 1.0)
        result, figures, failure = None, [], None
        with engine.accumulation.of(len(update.batches)) as begin:
            for place, batch in enumerate(update.batches):
                begin(place)
                done = self._try(batch, scale, current) if failure is None else None
                if done is None:
                    done = self._run(emptied(batch), 0.0, current, poison=failure is None)
                    failure = failure or Failure(place, batch)
                figures.append(done)
                with self._timing.span("step"):
                    result = engine.step(name_gradients)
                activity.mark()
        assert result is not None, "the last micro-batch of an update steps"
        if failure is not None and result.applied:
            raise RuntimeError("an update without one of its batches has been applied")
        self._criterion.end_update(result.applied)
        if result.applied:
            self._balancer.update()
        else:
            self._balancer.discard()
        return Attempt(update, result, lr, figures, failure)

    def _try(self, batch: Batch, scale: float, current: Current) -> BatchFigures | None:
        """Run forward and backward; return None if memory has run out and all is tidied up."""
        try:
            return self._run(batch, scale, current)
        except (RuntimeError, MemoryError) as error:
            is_tidy = is_out_of_memory(error) and self._survives and can_split(batch)
            if not is_tidy or not self.engine.accumulation.forget_backward():
                raise
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _run(
        self, host_batch: Batch, scale: float, current: Current, poison: bool = False
    ) -> BatchFigures:
        batch = host_batch.to(self.engine.device, non_blocking=True)
        with self._timing.span("forward"):
            criterion, passes = self._criterion, self._criterion.num_passes
            read = criterion.prepare(batch, current) if criterion.prepares else batch
            output = self.engine(read if passes == 1 else repeated(read, passes))
            loss = criterion(output, read)
        total = loss.total * scale
        if poison:  # an empty batch has no row through which NaN could reach the weights
            total = total + math.nan * self._smallest.float().sum()
        with self._timing.span("backward"):
            self.engine.backward(total)
        self._balancer.add(output.moe_stats)
        return BatchFigures({**loss.parts, "loss": loss.total.detach()}, output.moe_stats, batch)


def _seed_update(seed: int, update: int, device: torch.device) -> None:
    """Make dropout depend on (seed, update, rank), so that resuming needs no generator state."""
    mixed = ((seed * 1_000_003 + update) * 8191 + distributed.rank()) % 2**63
    if device.type == "cpu":
        # torch.manual_seed also prepares the seeds of devices that are not there, in 9 ms
        torch.default_generator.manual_seed(mixed)
    else:
        torch.manual_seed(mixed)
