"""Positions in the order of training, and the legs between them.

A leg is the rest of an epoch from a position, or that part of it which belongs to a stage that ends
after a number of updates. The stream and its background thread walk along the same legs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.mixing import Mix, Plan


class Position(NamedTuple):
    """A position between two updates, the same for all ranks.

    Attributes:
        epoch: epoch of the next batch, from 1.
        done: number of batches of that epoch in finished updates, over all ranks.
        plan: segments of the mix; empty without a mix.
        stage_updates: number of finished updates of the stage.
    """

    epoch: int = 1
    done: int = 0
    plan: Plan = ()
    stage_updates: int = 0


class Legs:
    """The legs of a training.

    Args:
        sampler: makes batches of an epoch.
        mix: the pairs of each epoch; None: those of the sampler.
    """

    def __init__(self, sampler: TokenBatchSampler, mix: Mix | None = None) -> None:
        self._sampler = sampler
        self.mix = mix

    @property
    def start(self) -> Position:
        """The position before the first update."""
        return Position() if self.mix is None else Position(plan=self.mix.start)

    def sampler(self, position: Position) -> TokenBatchSampler:
        """Return the sampler of the epoch of a position."""
        return self._sampler if self.mix is None else self.mix.sampler(position.plan)

    def _updates_left(self, position: Position) -> int | None:
        """Return the number of updates until the end of a stage that counts them."""
        wanted = None if self.mix is None else self.mix.stage(position.plan).until.updates
        return None if wanted is None else max(1, wanted - position.stage_updates)

    def num_updates(self, position: Position) -> int:
        """Return the number of updates of the leg that begins at a position."""
        updates = self.sampler(position).num_updates(position.done, position.epoch)
        left = self._updates_left(position)
        return updates if left is None else min(updates, left)

    def batches(self, position: Position) -> Iterator[NDArray[np.int64]]:
        """Yield the batches of this rank of the leg that begins at a position."""
        sampler = self.sampler(position)
        size = self.num_updates(position) * sampler.accumulate
        return islice(sampler.batches(position.epoch, position.done), size)

    def along(self, position: Position, updates: int) -> Position:
        """Return the position after some updates of the leg that begins at a position."""
        if updates == self.num_updates(position):
            return self.after(position)
        done = position.done + updates * self._sampler.group
        return position._replace(done=done, stage_updates=position.stage_updates + updates)

    def after(self, position: Position) -> Position:
        """Return the position after the leg that begins at a position."""
        epoch, mix = position.epoch, self.mix
        if mix is None:
            return Position(epoch + 1)
        updates, sampler = self.num_updates(position), self.sampler(position)
        is_whole = updates == sampler.num_updates(position.done, epoch)
        if updates == self._updates_left(position):
            done = 0 if is_whole else position.done + updates * sampler.group
            plan = mix.next_stage(position.plan, epoch + is_whole, done)
            return Position(epoch + 1, plan=plan)
        plan = mix.after(position.plan, epoch)
        kept = position.stage_updates + updates if plan is position.plan else 0
        return Position(epoch + 1, plan=plan, stage_updates=kept)

    def next_stage(self, position: Position) -> Position:
        """Return the position if the stage ends at one."""
        assert self.mix is not None
        plan = self.mix.next_stage(position.plan, position.epoch, position.done)
        return Position(plan[-1].epoch, plan=plan)
