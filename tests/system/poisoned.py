"""Criterions that fail on purpose, as a plug-in of a user may."""

from __future__ import annotations

import math

from ds_seq import distributed
from ds_seq.criterions.base import Criterion, Loss
from ds_seq.criterions.cross_entropy import CrossEntropy
from ds_seq.data.batch import Batch
from ds_seq.errors import UserError
from ds_seq.models.output import ModelOutput
from tests.memory import hungry


class PoisonedLoss(Criterion):
    """Cross entropy, times a factor for some batches.

    Args:
        pairs: numbers of pairs, from 1; a batch that holds one of them is poisoned.
        first: batches before this one, from 0, are not poisoned for this reason: all others are.
        factor: of the loss of such a batch.
        times: poison only so many batches.
        end: this batch, from 0, ends the run with an error.
    """

    def __init__(
        self,
        pairs: tuple[int, ...] = (),
        first: int | None = None,
        factor: float = math.nan,
        times: int | None = None,
        end: int | None = None,
    ) -> None:
        self._base = CrossEntropy(0.0, "fairseq")
        self._rows = {pair - 1 for pair in pairs}
        self._first, self._factor, self._left = first, factor, times
        self._seen, self._end = 0, end

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        loss = self._base(output, batch)
        if not self.training:
            return loss
        is_poisoned = not self._rows.isdisjoint(batch.indices.tolist())
        is_poisoned |= self._first is not None and self._seen >= self._first
        if self._seen == self._end:
            raise UserError("it ends here, as it was told")
        self._seen += 1
        if not is_poisoned or self._left == 0:
            return loss
        if self._left is not None:
            self._left -= 1
        return loss._replace(total=loss.total * self._factor)


class HungryLoss(Criterion):
    """Cross entropy that needs memory for each sentence.

    Args:
        rank: the rank without memory.
        room: sentences for which it has memory.
    """

    def __init__(self, rank: int, room: int) -> None:
        self._base = CrossEntropy(0.0, "fairseq")
        self._rank, self._room = rank, room

    def __call__(self, output: ModelOutput, batch: Batch) -> Loss:
        loss = self._base(output, batch)
        if not self.training or distributed.rank() != self._rank:
            return loss
        total = hungry(loss.total, batch.num_sentences, self._room, in_backward=True)
        return loss._replace(total=total)
