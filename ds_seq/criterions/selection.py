"""Which tokens are distilled: those that are hard for the student (Wang et al., arXiv:2105.12967).

A token is hard if its negative log-likelihood is among the highest `rate` of its batch, of the
last tokens seen, or of the last tokens of its source language (Gumma et al., arXiv:2304.09388).

Shapes: N real target tokens of a batch, M of them selected, L source languages.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from ds_seq import distributed
from ds_seq.data.batch import Batch

_COMMON = "all"  # the queue of sentences without a tag


def hardest(values: Tensor, rate: float) -> float:
    """The threshold: the ceil(rate * count)-th largest value; minus infinity where there is none.

    Args:
        values: (count,) float32 on any device.
        rate: in (0, 1].
    """
    count = len(values)
    if count == 0:
        return -math.inf
    # 0.55 * 100 is 55.000000000000007, of which the ceiling would be one too many
    place = min(max(math.ceil(round(rate * count, 6)), 1), count)
    # numpy's selection is ten times as fast as torch.topk or kthvalue on a CPU, and whoever wants
    # the selected rows waits for the device anyway
    array = values.cpu().numpy()
    return float(np.partition(array, count - place)[count - place])


class TokenSelector(ABC):
    """Selects the hard tokens of a batch, and remembers what it needs for that.

    Attributes:
        training: False while a model is validated: what is judged is not remembered.
    """

    training: bool = True

    @abstractmethod
    def select(self, nll: Tensor, batch: Batch) -> Tensor:
        """Select tokens of a batch.

        Args:
            nll: (N,) float32 negative log-likelihood of each real target token.
            batch: their sentences.

        Returns:
            (M,) int64 numbers of the hard ones, rising.
        """

    def end_update(self, applied: bool) -> None:  # noqa: B027 - nothing to do is a fine default
        """See `Criterion.end_update`."""

    def state(self) -> dict[str, Tensor]:
        """See `Criterion.state`."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - likewise
        """See `Criterion.load_state`."""


class BatchSelector(TokenSelector):
    """Compares the tokens of a batch with each other."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def select(self, nll: Tensor, batch: Batch) -> Tensor:
        """See `TokenSelector.select`."""
        return (nll >= hardest(nll, self._rate)).nonzero().squeeze(1)


class QueueSelector(TokenSelector):
    """Compares tokens with the last ones seen, by source language if there are tags.

    A shared queue is the same on all ranks. A batch is judged by it as it stood after the last
    update, and what an update brings is appended at its end in the order of the data, whatever the
    layout; so every layout selects the same tokens. A rank's own queue takes in each batch before
    judging it.

    Args:
        rate: share of the tokens that are hard.
        size: tokens that a queue remembers.
        shared: one queue for all ranks, or each rank its own.
        tags: ids of the tokens that open a source and name its language. Sentences without one have
            a queue in common, which without tags is the only one.
    """

    def __init__(self, rate: float, size: int, shared: bool, tags: Collection[int] = ()) -> None:
        self._rate, self._size, self._shared = rate, size, shared
        self._tags = torch.tensor(sorted(tags), dtype=torch.int64)
        self._names = [*map(str, sorted(tags)), _COMMON]
        # Queues are never changed in place, so that going back is a matter of keeping the old.
        self._queues = [torch.zeros(0) for _ in self._names]  # after the last update
        self._now = list(self._queues)  # with what a rank's own queue has seen since
        self._thresholds = torch.full((len(self._names),), -math.inf)  # of the queues after it
        self._pending: list[tuple[Tensor, Tensor]] = []  # losses and languages, by micro-batch

    def select(self, nll: Tensor, batch: Batch) -> Tensor:
        """See `TokenSelector.select`. An empty queue finds every token hard."""
        languages = self._languages(batch, nll)
        if not self._shared and self.training:
            self._append(self._now, nll, languages)
            thresholds = self._thresholds_of(self._now, set(languages.tolist()))
        else:
            thresholds = self._thresholds
            if self.training:
                self._pending.append((nll.detach(), languages))
        return (nll >= thresholds.to(nll.device)[languages]).nonzero().squeeze(1)

    def end_update(self, applied: bool) -> None:
        """Remember the batches of the update, or forget them; a collective if shared."""
        pending, self._pending = self._pending, []
        if not applied:
            self._now = list(self._queues)
            return
        if self._shared:
            gathered = distributed.gather_pieces([_packed(*piece) for piece in pending])
            for piece in gathered:
                self._append(self._now, *_unpacked(piece))
        before, self._queues = self._queues, list(self._now)
        changed = {
            index
            for index, (old, new) in enumerate(zip(before, self._queues, strict=True))
            if old is not new
        }
        self._thresholds = torch.where(
            torch.tensor([index in changed for index in range(len(self._names))]),
            self._thresholds_of(self._queues, changed),
            self._thresholds,
        )

    def state(self) -> dict[str, Tensor]:
        """The queues, oldest value first: rank 0's if shared, else every rank's."""
        if self._shared and distributed.rank() > 0:
            return {}
        prefix = "" if self._shared else f"rank{distributed.rank()}."
        return {
            f"{prefix}queue.{name}": queue.clone()
            for name, queue in zip(self._names, self._queues, strict=True)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a shared queue, or that of a rank: of the old rank r mod their number."""
        ranks = [
            int(found[1]) for name in state if (found := re.match(r"rank(\d+)\.queue\.", name))
        ]
        prefix = ""
        if ranks and not (self._shared and any(name.startswith("queue.") for name in state)):
            own = 0 if self._shared else distributed.rank() % (max(ranks) + 1)
            prefix = f"rank{own}."
        for index, name in enumerate(self._names):
            values = state.get(f"{prefix}queue.{name}", torch.zeros(0))
            self._queues[index] = values.float().cpu()[-self._size :].clone()
        self._now, self._pending = list(self._queues), []
        self._thresholds = self._thresholds_of(self._queues, set(range(len(self._names))))

    def _languages(self, batch: Batch, nll: Tensor) -> Tensor:
        """(N,) number of the queue of each real target token, on the device of nll (N,)."""
        if len(self._tags) == 0:
            return torch.zeros(len(nll), dtype=torch.int64, device=nll.device)
        tags, first = self._tags.to(nll.device), batch.inputs.source[:, 0].contiguous()
        index = torch.searchsorted(tags, first).clamp(max=len(tags) - 1)
        index = torch.where(tags[index] == first, index, len(tags))
        return index.repeat_interleave(batch.mask.sum(1), output_size=len(nll))

    def _append(self, queues: list[Tensor], nll: Tensor, languages: Tensor) -> None:
        """Put new values behind the old ones, and let go of the oldest."""
        nll, languages = nll.cpu(), languages.cpu()
        finite = nll.isfinite()
        nll, languages = nll[finite], languages[finite]
        for index in set(languages.tolist()):
            queues[index] = torch.cat([queues[index], nll[languages == index]])[-self._size :]

    def _thresholds_of(self, queues: list[Tensor], which: set[int]) -> Tensor:
        """(L + 1,) thresholds; those not in `which` are minus infinity."""
        thresholds = [
            hardest(queue, self._rate) if index in which else -math.inf
            for index, queue in enumerate(queues)
        ]
        return torch.tensor(thresholds)


def _packed(nll: Tensor, languages: Tensor) -> Tensor:
    """(2, N) int32, so that both travel in one piece: the losses' bits, and the languages."""
    return torch.stack([nll.float().view(torch.int32), languages.int()])


def _unpacked(piece: Tensor) -> tuple[Tensor, Tensor]:
    return piece[0].contiguous().view(torch.float32), piece[1].long()
